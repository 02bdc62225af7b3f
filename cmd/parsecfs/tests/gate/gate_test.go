// Package gate shows who gets in, and that nobody else does: each way into a mount, each way to lose a right, whoever
// asks.
package gate

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// The tests here wait most of the time: more than one for each processor can do so.
const parallel = "8"

func TestMain(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		if err := flag.Set("test.parallel", parallel); err != nil {
			panic(err)
		}
	}
	parsecfstest.Main(m)
}

// The users of the table. Each loss has an opener of its own, since what is open is counted for each user.
const (
	owner      = 61001
	other      = 61004
	stranger   = 61005
	firstUser  = 61100
	group      = 62002
	otherGroup = 62003
)

// Who asks.
const (
	opener      = "opener"
	openerAgain = "opener again" // after others were judged: their verdicts are theirs
	child       = "child"        // of the opener, with what it inherited
	ungrouped   = "ungrouped"    // the opener's uid without its groups; this and the next got the descriptors by SCM_RIGHTS
	otherUser   = "other"        // who has a right of his own
	ownerUser   = "owner"        // of the key and its files
	strangerOne = "stranger"
	namespaced  = "root of a user namespace" // whose uid outside is the opener's
	setuid      = "setuid"                   // root's program with the setuid bit, run by the opener
)

// A road says how somebody gets in.
type road int

const (
	held   road = iota // through what was opened before
	reopen             // a slot that was made before is opened anew
	inSlot             // the same, below a descriptor of the slot itself, where the kernel judges nothing
	fresh              // a new open
)

// What a right is to.
const (
	toOperation = "operation"
	toText      = "text"
	toRandom    = "random"
	toNamed     = "named" // a key that is named in bytes
	toProvider  = "provider"
)

// way is a way in; testdata/ways.py has what it does.
type way struct {
	name  string
	to    string
	road  road
	reads bool     // it needs r alone
	once  bool     // it can succeed once
	slot  bool     // it is its creator's alone
	who   []string // nil: everybody
}

var openers = []string{opener, openerAgain}

var ways = []way{
	{name: "file", to: toOperation},
	{name: "ioctl", to: toOperation},
	{name: "slot", to: toOperation, slot: true},
	{name: "ioctl of a slot", to: toOperation, slot: true},
	{name: "part", to: toOperation, slot: true},
	{name: "part at", to: toOperation, slot: true, road: inSlot},
	{name: "random", to: toRandom, reads: true},
	{name: "hash", to: toProvider},
	{name: "hash by path", to: toProvider, road: fresh},
	{name: "attributes", to: toText},
	{name: "certificate", to: toText},
	// A program that ends closes what it inherited: its FLUSH would be the effect that others are asked about.
	{name: "certificate, written before", to: toText, who: []string{opener}, once: true},
	{name: "import", to: toText, once: true},
	{name: "generate", to: toText, once: true},
	{name: "drop box", to: toOperation, who: openers, once: true},
	{name: "copy", to: toNamed, who: openers, once: true},
	{name: "store", to: toNamed, who: openers, once: true},
	{name: "slot by path", to: toOperation, slot: true, road: reopen},
	{name: "slot at", to: toOperation, slot: true, road: reopen},
	{name: "part by path", to: toOperation, slot: true, road: reopen},
	{name: "path", to: toOperation, road: fresh},
	{name: "ioctl by path", to: toOperation, road: fresh},
	{name: "O_PATH", to: toOperation, road: fresh},
	{name: "openat", to: toOperation, road: fresh},
	{name: "openat keys", to: toOperation, road: fresh},
	{name: "bind", to: toOperation, road: fresh},
	{name: "new slot", to: toOperation, road: fresh},
	{name: "new slot at", to: toOperation, road: fresh},
	{name: "random by path", to: toRandom, road: fresh, reads: true},
	{name: "attributes by path", to: toText, road: fresh},
	{name: "attributes, O_PATH", to: toText, road: fresh},
	{name: "drop box by path", to: toOperation, road: fresh, who: openers, once: true},
}

// kind is how much of the way a loss takes.
type kind int

const (
	file     kind = iota // of a file
	above                // of a directory: what was opened before and new opens by whatever road
	keyGone              // the key
	nothing              // none
	unitsKey             // of a unit, to a key
)

// loss is a way to lose a right. FILES are those that the opener has a right to, DIRS the keys' directories, P the
// provider's, and the commands run there, as root.
type loss struct {
	name   string
	kind   kind
	give   string // "": the opener and the other user by name
	take   string // "": a new configuration
	lets   []string
	spares []string // what rights are not lost
	// of the provider's directory, before and after
	before, after provider
	maker         string   // whose the keys are: "" is the owner
	names         bool     // the keys have other names afterwards
	reader        bool     // r stays
	units         []string // the units in which opener, and owner and other, are
}

type provider struct {
	owner, group int
	mode         string
	units        []string
}

const byName = `setfacl -m u:$USER:rw,u:$OTHER:rw $FILES`

var losses = []loss{
	{name: "setfacl -x", take: `setfacl -x u:$USER $FILES random`, lets: []string{otherUser, ownerUser, setuid}},
	{name: "setfacl r", take: `setfacl -m u:$USER:r $FILES random`, lets: []string{otherUser, ownerUser, setuid}, reader: true},
	{name: "setfacl -b", take: `setfacl -b $FILES random`, lets: []string{ownerUser, setuid}},
	{name: "mask", take: `setfacl -m m::- $FILES random`, lets: []string{ownerUser, setuid}},
	{name: "chmod", take: `chmod 600 $FILES random`, lets: []string{ownerUser, setuid}},
	{name: "chown", give: `setfacl -m u:$OTHER:rw $FILES && chown $USER $FILES random && setfacl -x u:$USER random`,
		take: `chown $OWNER $FILES random`, lets: []string{otherUser, ownerUser, setuid}},
	{name: "chgrp", give: `setfacl -m u:$OTHER:rw,g::rw $FILES random && chgrp $GROUP $FILES random && setfacl -x u:$USER random`,
		take: `chgrp $OTHERGROUP $FILES random`, lets: []string{otherUser, ownerUser, setuid}},
	{name: "the group's mode", give: `setfacl -m u:$OTHER:rw,g::rw $FILES random && chgrp $GROUP $FILES random && setfacl -x u:$USER random`,
		take: `setfacl -m g::- $FILES random`, lets: []string{otherUser, ownerUser, setuid}},
	{name: "another's right", give: `setfacl -m u:$OTHER:rw,g::rw $FILES random && chgrp $GROUP $FILES random && setfacl -x u:$USER random`,
		take: `setfacl -x u:$OTHER $FILES random`, lets: []string{opener, openerAgain, child, ownerUser, setuid}},
	{name: "chmod of the key's directory", kind: above, take: `chmod 700 $DIRS`, lets: []string{ownerUser, setuid}, spares: []string{toRandom}},
	{name: "ACL of keys/", kind: above, take: `setfacl -m u:$OWNER:x,g::-,o::- keys`, lets: []string{ownerUser, setuid}, spares: []string{toRandom}},
	{name: "chmod of keys/", kind: above, take: `chmod 1700 keys`, lets: []string{setuid}, spares: []string{toRandom}},
	{name: "mode of the provider", kind: above, before: provider{owner: owner, mode: "0755"}, after: provider{owner: owner, mode: "0700"},
		lets: []string{ownerUser, setuid}},
	{name: "group of the provider", kind: above, before: provider{owner: owner, group: group, mode: "0750"},
		after: provider{owner: owner, group: otherGroup, mode: "0750"}, lets: []string{otherUser, ownerUser, setuid}},
	{name: "units of the key", kind: unitsKey, take: `for d in k a; do for s in $STAGES; do echo "units = [\"$UNIT\"]" >keys/$d-$s/attributes; done; done`,
		lets: []string{otherUser, ownerUser}, units: []string{"one", "two"}, spares: []string{toRandom}},
	{name: "units of the provider", kind: above, before: provider{units: []string{"one", "two"}}, after: provider{units: []string{"two"}},
		lets: []string{otherUser, ownerUser}, units: []string{"one", "two"}},
	{name: "rmdir", kind: keyGone, take: `rmdir $DIRS`, spares: []string{toRandom}},
	{name: "chown -R", kind: above, maker: "user", give: `true`, take: `chown -Rf $OTHER:$OTHER $DIRS || true; chmod 700 $DIRS`,
		lets: []string{otherUser, setuid}, spares: []string{toRandom}},
	{name: "rename", kind: nothing, take: `for d in $DIRS; do setpriv --reuid=$OWNER --regid=$OWNER --clear-groups mv $d $d-renamed; done`,
		lets: []string{opener, openerAgain, child, ungrouped, namespaced, otherUser, ownerUser, setuid}, names: true},
	{name: "more rights", kind: nothing, take: `setfacl -m u:61006:rw $FILES random; setfacl -m u:61006:rx $DIRS; setfacl -m u:61006:rwx keys`,
		lets: []string{opener, openerAgain, child, ungrouped, namespaced, otherUser, ownerUser, setuid}},
}

// orders are the stages of each loss: who asks at once, and who asks 15 s later.
var orders = []struct {
	name      string
	now, then []string
}{
	{"a", []string{opener, child, ungrouped, namespaced, strangerOne, otherUser, ownerUser, setuid, openerAgain}, []string{opener, setuid, child, openerAgain}},
	{"b", []string{setuid, opener, otherUser, ownerUser, child, openerAgain}, []string{setuid, otherUser, openerAgain}},
	{"c", nil, []string{ungrouped, namespaced, strangerOne, opener, child, otherUser, ownerUser, setuid, openerAgain}},
}

// wants are what may come, joined by "|"; "" where nothing is promised.
func wants(l loss, w way, who string) string {
	let := slices.Contains(l.lets, who)
	switch {
	case w.who != nil && !slices.Contains(w.who, who):
		return ""
	case w.slot && slices.Contains([]string{strangerOne, otherUser, ownerUser, setuid}, who):
		// A slot is its creator's alone; what a passed descriptor of one is worth to others is not promised.
		switch {
		case w.road == held:
			return ""
		case l.kind == keyGone:
			return "ENOENT|ESTALE|EACCES|EKEYREVOKED"
		}
		return "EACCES|EKEYREVOKED"
	case w.to == toProvider && l.after.mode == "" && l.after.units == nil:
		return "ok" // everybody's
	case slices.Contains(l.spares, w.to) || l.reader && w.reads:
		if w.road == fresh && who == strangerOne {
			return "EACCES"
		}
		return "ok"
	case l.kind == unitsKey && w.to == toText || l.kind == unitsKey && w.name == "store":
		return "" // units say who uses a key
	case w.to == toNamed && l.kind == keyGone:
		return "ENOENT"
	case l.kind == keyGone && w.road == held:
		return "EKEYREVOKED"
	case l.kind == keyGone && slices.Contains([]string{"path", "ioctl by path", "attributes by path", "openat keys", "new slot", "drop box by path"}, w.name):
		return "ENOENT"
	case l.kind == keyGone:
		return "ENOENT|ESTALE|EKEYREVOKED"
	case l.kind == nothing && w.road != fresh:
		let = true
	}
	switch {
	// A request waits for 5 s. Who may still read gets no answer to what it may no longer ask.
	case let && strings.HasPrefix(w.name, "drop box"):
		return "ok|EBUSY|ENODATA|nothing" // the end of the file, to who asks again
	case l.reader && strings.HasPrefix(w.name, "drop box"):
		return "EKEYREVOKED|EBUSY|ENODATA|nothing"
	case let:
		return "ok"
	case w.to == toNamed && l.kind == above || w.road == reopen:
		return "EACCES|EKEYREVOKED"
	case w.road == fresh || w.to == toNamed:
		return "EACCES"
	}
	return "EKEYREVOKED"
}

// scene is a loss under way.
type scene struct {
	loss
	dir      string // of the provider
	user     int
	env      []string
	stages   []*stage
	problems []string
	cells    int

	namespaces bool
	failed     map[string]int // by way
	examples   map[string]string
}

// stage is one of stage.py.
type stage struct {
	order string
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	names map[string]string
	spent map[string]bool
	bound string
}

// run runs a script as root, in the unit of owner and other.
func (s *scene) run(script string, args ...string) error {
	cmd := exec.Command("sh", append([]string{"-euc", `[ -z "$CGROUP" ] || echo $$ >"$CGROUP/cgroup.procs"; ` + script, "sh"}, args...)...)
	cmd.Dir, cmd.Env = s.dir, s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %v: %s", script, err, out)
	}
	return nil
}

var keyNames = []string{"k", "a", "text", "imported", "generated", "stored"}

type shared struct {
	work, setuid, ca, pem string
	cgroups               map[string]string
	tag                   string
	namespaces            bool // user namespaces can be made: not in a chroot, nor in many containers
}

// set makes the keys of a loss, and lets the openers open what they will ask through.
func (s *scene) set(sh shared) error {
	work, err := os.MkdirTemp(sh.work, "scene-")
	if err != nil {
		return err
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	var files, dirs, stages []string
	for _, o := range orders {
		for _, f := range []string{"k/sign", "k/sign_raw", "k/certificate", "k/export", "a/encrypt", "text/attributes", "imported/import", "generated/generate", "stored/import"} {
			key, name, _ := strings.Cut(f, "/")
			files = append(files, "keys/"+key+"-"+o.name+"/"+name)
		}
		for _, k := range keyNames {
			dirs = append(dirs, "keys/"+k+"-"+o.name)
		}
		stages = append(stages, o.name)
	}
	maker := owner
	if s.maker == "user" {
		maker = s.user
	}
	var openersCgroup, othersCgroup string
	if s.units != nil {
		openersCgroup, othersCgroup = sh.cgroups[s.units[0]], sh.cgroups[s.units[1]]
	}
	for name, value := range map[string]string{
		"P": s.dir, "WORK": work, "CA": sh.ca, "FILES": strings.Join(files, " "), "DIRS": strings.Join(dirs, " "), "STAGES": strings.Join(stages, " "),
		"OWNER": strconv.Itoa(owner), "USER": strconv.Itoa(s.user), "OTHER": strconv.Itoa(other), "GROUP": strconv.Itoa(group), "OTHERGROUP": strconv.Itoa(otherGroup),
		"MAKER": strconv.Itoa(maker), "CGROUP": othersCgroup, "UNIT": sh.tag + "-two.service",
	} {
		s.env = append(s.env, name+"="+value)
	}
	s.env = append(s.env, "PATH="+os.Getenv("PATH"))
	setup, err := filepath.Abs("testdata/setup.sh")
	if err != nil {
		return err
	}
	for _, o := range orders {
		if err := s.run(`exec sh -eu "$@"`, setup, o.name); err != nil {
			return err
		}
	}
	give := s.give
	if give == "" {
		give = byName
	}
	if err := s.run(`setfacl -m u:$USER:r,u:$OTHER:r,g::-,o::- random && chown $OWNER random; ` + give); err != nil {
		return err
	}
	for _, o := range orders {
		if err := s.open(sh, work, o.name, openersCgroup, othersCgroup); err != nil {
			return fmt.Errorf("stage %s: %w", o.name, err)
		}
	}
	return nil
}

func (s *scene) open(sh shared, work, order, openersCgroup, othersCgroup string) error {
	st := &stage{order: order, names: map[string]string{}, spent: map[string]bool{}, bound: filepath.Join(work, "bound-"+order)}
	for _, k := range append([]string{"copy", "agree"}, keyNames...) {
		st.names[k] = k + "-" + order
	}
	if err := os.WriteFile(st.bound, nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(s.dir+"/keys/"+st.names["k"]+"/sign", st.bound, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	type actor struct {
		UID    int    `json:"uid"`
		GID    int    `json:"gid"`
		Groups []int  `json:"groups"`
		Cgroup string `json:"cgroup"`
		Spaced bool   `json:"namespace"`
	}
	others := []int{}
	if s.before.group != 0 {
		others = []int{group, otherGroup}
	}
	var names []string
	for _, w := range ways {
		names = append(names, w.name)
	}
	actors := map[string]actor{
		opener:      {s.user, s.user, []int{group}, openersCgroup, false},
		ungrouped:   {s.user, s.user, []int{}, openersCgroup, false},
		namespaced:  {s.user, s.user, []int{}, openersCgroup, true},
		otherUser:   {other, other, others, othersCgroup, false},
		ownerUser:   {owner, owner, []int{}, othersCgroup, false},
		strangerOne: {stranger, stranger, []int{}, openersCgroup, false},
	}
	if !sh.namespaces {
		delete(actors, namespaced)
	}
	spec, err := json.Marshal(map[string]any{
		"provider": s.dir, "names": st.names, "bound": st.bound, "pem": sh.pem, "chain": filepath.Join(work, "chain-"+order+".pem"),
		"setuid": sh.setuid, "ways": names,
		"actors": actors,
	})
	if err != nil {
		return err
	}
	st.cmd = exec.Command("/usr/bin/python3", "-B", "testdata/stage.py", string(spec))
	st.cmd.Stderr = os.Stderr
	if st.in, err = st.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := st.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := st.cmd.Start(); err != nil {
		return err
	}
	st.out = bufio.NewReader(out)
	s.stages = append(s.stages, st)
	failed, err := st.read()
	if err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("before anything was lost: %v", failed)
	}
	var repeated []string
	for _, w := range ways {
		if !w.once {
			repeated = append(repeated, w.name)
		}
	}
	results, err := st.ask(opener, repeated)
	for name, result := range results {
		if result != "ok" {
			s.problems = append(s.problems, fmt.Sprintf("before anything was lost, %s: %s", name, result))
		}
	}
	return err
}

func (st *stage) read() (results map[string]string, err error) {
	line, err := st.out.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	return results, json.Unmarshal(line, &results)
}

func (st *stage) ask(who string, ways []string) (map[string]string, error) {
	line, err := json.Marshal(map[string]any{"who": who, "ways": ways, "names": st.names})
	if err == nil {
		_, err = st.in.Write(append(line, '\n'))
	}
	if err != nil {
		return nil, err
	}
	return st.read()
}

// ask lets one after the other ask, and compares with the table.
func (s *scene) ask(when string, st *stage, whos []string) error {
	for _, who := range whos {
		if who == namespaced && !s.namespaces {
			continue
		}
		var names []string
		wanted := map[string]string{}
		for _, w := range ways {
			want := wants(s.loss, w, who)
			if want == "" || st.spent[w.name] {
				continue
			}
			names, wanted[w.name] = append(names, w.name), want
		}
		results, err := st.ask(who, names)
		if err != nil {
			return fmt.Errorf("stage %s, %s: %w", st.order, who, err)
		}
		for _, w := range ways {
			want, asked := wanted[w.name]
			if !asked {
				continue
			}
			got := results[w.name]
			if w.once && (got == "ok" || got == "EBUSY") {
				st.spent[w.name] = true
			}
			s.cells++
			if slices.Contains(strings.Split(want, "|"), got) {
				continue
			}
			s.failed[w.name]++
			if s.examples[w.name] == "" {
				s.examples[w.name] = fmt.Sprintf("stage %s, %s, %s: %s, want %s", st.order, when, who, got, want)
			}
			if full() {
				s.problems = append(s.problems, fmt.Sprintf("%s: stage %s, %s, %s: %s, want %s", w.name, st.order, when, who, got, want))
			}
		}
	}
	return nil
}

// full says whether each cell that fails is told.
func full() bool { return parsecfstest.Long() }

func (s *scene) lose() error {
	if s.take == "" {
		return nil // all configurations change at once
	}
	return s.run(s.take)
}

func (s *scene) end() error {
	var first error
	for _, st := range s.stages {
		st.in.Close()
		if err := st.cmd.Wait(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// each does something with every scene, some at a time, and keeps what went wrong.
func each(scenes []*scene, do func(*scene) error) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, 4)
	for _, s := range scenes {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if len(s.problems) > 0 && s.stages == nil {
				return
			}
			if err := do(s); err != nil {
				s.problems = append(s.problems, err.Error())
			}
		})
	}
	wg.Wait()
}

// lateness is longer than any window of time that might once have decided.
const lateness = 15 * time.Second

// TestGate asks each way in, after each way to lose a right, by whoever might ask, at once and 15 s later.
func TestGate(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	sh := prepare(t)
	var scenes []*scene
	for i, l := range losses {
		if l.units != nil && sh.cgroups == nil {
			t.Logf("%s: skipped, since no cgroup hierarchy of systemd can be mounted here", l.name)
			continue
		}
		scenes = append(scenes, &scene{loss: l, user: firstUser + i, namespaces: sh.namespaces, failed: map[string]int{}, examples: map[string]string{}})
	}
	// Where there are rules for units, who is in none is let in nowhere: those losses have a mount of their own.
	free := slices.DeleteFunc(slices.Clone(scenes), func(s *scene) bool { return s.units != nil })
	ruled := slices.DeleteFunc(slices.Clone(scenes), func(s *scene) bool { return s.units == nil })
	mounts := map[*parsecfstest.Mounted][]*scene{}
	for _, part := range [][]*scene{free, ruled} {
		if len(part) == 0 {
			continue
		}
		m := parsecfstest.Mount(t, parsecfstest.Options{Config: configuration(sh, part, false)})
		mounts[m] = part
		for i, s := range part {
			s.dir = filepath.Join(m.Dir, "providers", providerName(i))
		}
	}
	t.Cleanup(func() { unmountBelow(t, sh.work) })
	each(scenes, func(s *scene) error { return s.set(sh) })
	for _, s := range scenes {
		defer s.end()
	}
	each(scenes, (*scene).lose)
	for m, part := range mounts {
		reload(t, m, configuration(sh, part, true))
	}
	late := time.After(lateness)
	for _, s := range scenes {
		if !s.names {
			continue
		}
		for _, st := range s.stages {
			for _, k := range keyNames {
				st.names[k] += "-renamed"
			}
		}
	}
	each(scenes, func(s *scene) error {
		for i, st := range s.stages {
			if err := s.ask("at once", st, orders[i].now); err != nil {
				return err
			}
		}
		return nil
	})
	<-late
	each(scenes, func(s *scene) error {
		for i, st := range s.stages {
			if err := s.ask("after 15 s", st, orders[i].then); err != nil {
				return err
			}
		}
		return nil
	})
	cells, failed := 0, 0
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			for _, p := range s.problems {
				t.Error(p)
			}
			for _, w := range ways {
				if n := s.failed[w.name]; n > 0 {
					t.Errorf("%s: %d cells, the first: %s", w.name, n, s.examples[w.name])
					failed += n
				}
			}
			if s.cells == 0 {
				t.Error("no cell")
			}
		})
		cells += s.cells
	}
	t.Logf("%d ways in, %d ways to lose a right, %d cells, %d do not hold", len(ways), len(scenes), cells, failed)
}

func providerName(i int) string { return "p" + strconv.Itoa(i) }

// configuration has a provider for each loss, as it is before or after.
func configuration(sh shared, scenes []*scene, after bool) string {
	var b strings.Builder
	fmt.Fprintln(&b, "[[authenticator]]\nauth_type = \"UnixPeerCredentials\"")
	if scenes[0].units != nil {
		fmt.Fprintln(&b, "[[authenticator]]\nauth_type = \"SystemdUnit\"\nrules = [")
		for i, s := range scenes {
			for _, unit := range s.side(after).units {
				fmt.Fprintf(&b, "  { provider = %q, units = [%q] },\n", providerName(i), sh.tag+"-"+unit+".service")
			}
		}
		fmt.Fprintln(&b, "]")
	}
	fmt.Fprintln(&b, "[[key_manager]]\nname = \"kim\"\nmanager_type = \"SQLite\"")
	for i, s := range scenes {
		fmt.Fprintf(&b, "[[provider]]\nname = %q\nprovider_type = \"Software\"\n", providerName(i))
		if p := s.side(after); p.mode != "" {
			fmt.Fprintf(&b, "owner = %d\ngroup = %d\nmode = %q\n", p.owner, p.group, p.mode)
		}
	}
	return b.String()
}

func (l loss) side(after bool) provider {
	if after {
		return l.after
	}
	return l.before
}

// reload gives a daemon another configuration, and waits until it has taken it.
func reload(t *testing.T, m *parsecfstest.Mounted, config string) {
	t.Helper()
	said := func() int { return strings.Count(m.Log(), "reloaded") }
	before := said()
	if err := os.WriteFile(m.ConfigFile, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Process().Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for said() == before {
		if !m.Running() {
			t.Fatal("the daemon has ended")
		}
		time.Sleep(time.Millisecond)
	}
	if strings.Contains(m.Log(), "was not reloaded") {
		t.Fatal(m.Log())
	}
}

// prepare makes what all losses share.
func prepare(t *testing.T) shared {
	t.Helper()
	sh := shared{work: parsecfstest.TempDir(t), tag: "parsecfs-gate-" + strconv.Itoa(os.Getpid())}
	ways := filepath.Join(sh.work, "ways.py")
	sh.setuid, sh.ca, sh.pem = filepath.Join(sh.work, "setuid"), filepath.Join(sh.work, "ca.pem"), filepath.Join(sh.work, "key.pem")
	source, err := os.ReadFile("testdata/ways.py")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ways, source, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"gcc", "-O1", `-DWAYS="` + ways + `"`, "-o", sh.setuid, "testdata/setuid.c"},
		{"chmod", "4755", sh.setuid},
		{"openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", sh.ca},
		{"openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", sh.pem},
		{"chmod", "644", sh.pem},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	if out, err := exec.Command("setpriv", "--reuid=61005", "--regid=61005", "--clear-groups", "findmnt", "-no", "OPTIONS", "-T", sh.work).CombinedOutput(); err == nil && strings.Contains(string(out), "nosuid") {
		t.Skip("the folder for temporary files is mounted nosuid: root's setuid programs cannot be tried")
	}
	sh.cgroups = units(t, sh)
	if sh.namespaces = exec.Command("unshare", "-U", "true").Run() == nil; !sh.namespaces {
		t.Log("user namespaces cannot be made here: their roots do not ask")
	}
	return sh
}

// units makes the cgroups of two units as systemd would, where its hierarchy can be mounted.
func units(t *testing.T, sh shared) map[string]string {
	t.Helper()
	dir := filepath.Join(sh.work, "cgroup")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(own), ":name=systemd:") {
		err = unix.Mount("none", dir, "cgroup", 0, "none,name=systemd")
	} else {
		err = unix.Mount("none", dir, "cgroup2", 0, "")
	}
	if err != nil {
		return nil
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	slice := filepath.Join(dir, "system.slice")
	cgroups := map[string]string{}
	for _, name := range []string{"one", "two"} {
		cgroups[name] = filepath.Join(slice, sh.tag+"-"+name+".service")
		if err := os.MkdirAll(cgroups[name], 0o755); err != nil {
			return nil
		}
		t.Cleanup(func() {
			if err := os.Remove(cgroups[name]); err != nil {
				t.Error(err)
			}
		})
	}
	return cgroups
}

// unmountBelow ends the bind mounts of a folder.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[1], dir+"/scene-") {
			continue
		}
		if err := unix.Unmount(f[1], unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}
