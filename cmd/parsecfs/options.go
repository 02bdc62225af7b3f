package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/parsecfs/parsecfs/fs"
)

// mountSettings is what -o can set.
type mountSettings struct {
	allowOther       bool
	config, stateDir string
	dropbox          *bool
	transport        fs.Transport // empty: the configuration's
}

// mountOption is one option of -o.
type mountOption struct {
	name string
	help string
	set  func(m *mountSettings, value string) error // with "=" in name
}

var optionTable = []mountOption{
	{"allow_other", "let other users use the mount (always on for root); fail if /etc/fuse.conf does not permit it", func(m *mountSettings, _ string) error {
		m.allowOther = true
		return nil
	}},
	{"config=FILE", "the same as --config", func(m *mountSettings, v string) error {
		m.config = v
		return nil
	}},
	{"state-dir=DIR", "the same as --state-dir", func(m *mountSettings, v string) error {
		m.stateDir = v
		return nil
	}},
	{"dropbox=lineage|off", "as in [mount] of the configuration", func(m *mountSettings, v string) error {
		on := v == "lineage"
		if !on && v != "off" {
			return &fs.Error{Kind: fs.KindUsage, Err: fmt.Errorf("wrong value for mount option dropbox: %q; allowed: lineage, off", v)}
		}
		m.dropbox = &on
		return nil
	}},
	{"transport=auto|uring|device", "as in [mount] of the configuration", func(m *mountSettings, v string) error {
		switch m.transport = fs.Transport(v); m.transport {
		case fs.TransportAuto, fs.TransportURing, fs.TransportDevice:
			return nil
		}
		return &fs.Error{Kind: fs.KindUsage, Err: fmt.Errorf("wrong value for mount option transport: %q; allowed: auto, uring, device", v)}
	}},
}

// ignoredOptions are for mount(8), the service manager or other file systems. parsecfs is nosuid, nodev and noexec
// whatever they say, and asks the kernel to check permissions.
var ignoredOptions = []string{"rw", "auto", "noauto", "nofail", "_netdev", "defaults", "user", "nouser", "users", "owner", "group",
	"suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "atime", "noatime", "relatime", "norelatime",
	"strictatime", "nodiratime", "default_permissions"}

func optionsHelp() string {
	var b strings.Builder
	for _, o := range optionTable {
		fmt.Fprintf(&b, "  %-28s %s\n", o.name, o.help)
	}
	return b.String() + "  rw, noauto, nofail, _netdev, x-* and other options for mount(8) are ignored; ro is refused"
}

// parseOptions takes the value of each -o: options, separated by commas.
func (m *mountSettings) parseOptions(options []string) error {
	for option := range strings.SplitSeq(strings.Join(options, ","), ",") {
		name, value, hasValue := strings.Cut(option, "=")
		known := slices.IndexFunc(optionTable, func(o mountOption) bool {
			n, _, takes := strings.Cut(o.name, "=")
			return n == name && takes == hasValue
		})
		switch {
		case known >= 0:
			if hasValue && value == "" {
				return &fs.Error{Kind: fs.KindUsage, Err: fmt.Errorf("mount option %s has no value", name)}
			}
			if err := optionTable[known].set(m, value); err != nil {
				return err
			}
		case name == "ro":
			return &fs.Error{Kind: fs.KindUsage, Err: errors.New("mount option ro: every operation writes its request, so a read-only mount could not even sign"),
				Hint: "to take rights away, use chmod on the files"}
		case option == "" || strings.HasPrefix(option, "x-") || !hasValue && slices.Contains(ignoredOptions, option):
		default:
			var names []string
			for _, o := range optionTable {
				names = append(names, o.name)
			}
			return &fs.Error{Kind: fs.KindUsage, Err: fmt.Errorf("unknown mount option %q; allowed: %s, and options for mount(8) that are ignored", option, strings.Join(names, ", "))}
		}
	}
	return nil
}

// isMountHelper says whether the program was started as /sbin/mount.parsecfs or /sbin/mount.fuse.parsecfs.
func isMountHelper(argv []string) bool {
	return len(argv) > 0 && strings.HasPrefix(filepath.Base(argv[0]), "mount.")
}

// mountHelper translates the argument order of mount(8), "mount.parsecfs SOURCE DIR [-sfnv] [-N NS] [-o OPTIONS]
// [-t TYPE]", and that of mount.fuse3, "parsecfs SOURCE DIR -o OPTIONS", into a mount in the background.
func mountHelper(argv []string) (args []string, ok bool, err error) {
	fuse3 := len(argv) > 3 && argv[1] != "mount" && filepath.IsAbs(argv[2]) && argv[3] == "-o"
	if !isMountHelper(argv) && !fuse3 {
		return nil, false, nil
	}
	usage := func(why string) ([]string, bool, error) {
		return nil, false, &fs.Error{Kind: fs.KindUsage, Err: errors.New(why), Hint: filepath.Base(argv[0]) + " SOURCE MOUNTPOINT [-o OPTIONS]"}
	}
	args = []string{"mount", "--background"}
	var words []string
	for rest := argv[1:]; len(rest) > 0; rest = rest[1:] {
		switch word := rest[0]; {
		case word == "-o" || word == "-t" || word == "-N":
			if len(rest) < 2 {
				return usage(word + " needs a value")
			}
			rest = rest[1:]
			if word == "-o" {
				args = append(args, "-o", rest[0])
			}
		case word == "-f":
			// A dry run ends here.
			return []string{"version"}, true, nil
		case strings.HasPrefix(word, "-") && strings.Trim(word, "-snv") == "":
		case strings.HasPrefix(word, "-"):
			return usage("unknown option " + word)
		default:
			words = append(words, word)
		}
	}
	if len(words) != 2 {
		return usage("a source and a mountpoint are needed")
	}
	// The source names nothing: there is one tree.
	return append(args, "--", words[1]), true, nil
}
