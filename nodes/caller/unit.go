package caller

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Bounds of a list of units.
const (
	UnitsMost = 64  // units
	unitMost  = 255 // bytes of a name (systemd.unit(5))
)

// ValidUnit says what is wrong with the name of a unit that processes run in: systemd.unit(5)'s characters, and
// .service or .scope at the end. The name of a template, "worker@.service", stands for all its instances.
func ValidUnit(name string) error {
	stem, service := strings.CutSuffix(name, ".service")
	if !service {
		var scope bool
		if stem, scope = strings.CutSuffix(name, ".scope"); !scope {
			return fmt.Errorf("%q is not a unit for processes: write nginx.service, worker@.service (every instance) or session-1.scope", name)
		}
	}
	odd := strings.ContainsFunc(stem, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(`:-_.\@`, r)
	})
	if stem == "" || odd || len(name) > unitMost {
		return fmt.Errorf("%q is not the name of a unit: letters, digits and :-_.\\@, at most %d bytes", name, unitMost)
	}
	return nil
}

// Unit is the systemd unit that the caller runs in.
func (p *Procs) Unit(c Caller) (string, error) {
	if c.TID == 0 {
		return "", errUnseen
	}
	unit, err := readUnit(c.TID)
	if err != nil {
		return "", err
	}
	// read after the unit, so that it is the caller's
	if _, err := p.of(c, false); err != nil {
		return "", err
	}
	if unit == "" {
		return "", errors.New("it does not run in a unit")
	}
	return unit, nil
}

func readUnit(tid uint32) (unit string, err error) {
	err = readText(procPath(tid, "cgroup"), func(b []byte) error {
		unit = unitOf(b)
		return nil
	})
	return unit, err
}

// unitOf finds a process's systemd unit in its cgroup (/proc/<pid>/cgroup, cgroups(7)): the first component below the
// host root's slices, so that no user can name a unit of their own; everything under a user's manager counts as
// user@UID.service. Without one, or inside a cgroup namespace that is not the host's, it is "".
func unitOf(cgroup []byte) string {
	for line := range bytes.Lines(cgroup) {
		// the third field is the path, and may hold anything but a newline
		fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(":"), 3)
		if len(fields) != 3 {
			continue
		}
		// systemd's own hierarchy where controllers still have theirs (cgroups v1)
		unified, named := string(fields[0]) == "0" && len(fields[1]) == 0, string(fields[1]) == "name=systemd"
		path, ok := strings.CutPrefix(string(fields[2]), "/")
		if !ok || !unified && !named {
			continue
		}
		for part := range strings.SplitSeq(path, "/") {
			switch {
			case strings.HasSuffix(part, ".slice"):
				continue
			case strings.HasSuffix(part, ".service"), strings.HasSuffix(part, ".scope"):
				return part
			}
			return ""
		}
	}
	return ""
}
