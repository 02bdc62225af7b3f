package caller

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func FuzzProcStat(f *testing.F) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("1 (a) b) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 77 1 1"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, b []byte) { parseStat(b) })
}

// statusText is what the kernel says of a thread, in short.
const statusText = "Name:\tcat\nTgid:\t70\nPPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nVmExe:\t       4 kB\nVmLib:\t    8 kB\nThreads:\t3\n" +
	"SigPnd:\t0000000000000001\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000000004\n" +
	"CapEff:\t0000000000000002\n"

// FuzzStatus: a thread's status is understood as a whole or not at all.
func FuzzStatus(f *testing.F) {
	f.Add(statusText)
	f.Add("Name:\tcat\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000002\n")
	f.Add("Name:\tUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t\nCapEff:\tff\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseStatus([]byte(text), true)
		if err != nil {
			return
		}
		for _, name := range []string{"Tgid:", "PPid:", "Threads:", "Uid:", "Gid:", "Groups:", "CapEff:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:"} {
			if strings.Count("\n"+text, "\n"+name) != 1 {
				t.Fatalf("%q was understood with %d lines of %s", text, strings.Count("\n"+text, "\n"+name), name)
			}
		}
		few, err := parseStatus([]byte(text), false)
		if err != nil || few.uid != s.uid || few.gid != s.gid || few.caps != s.caps || len(few.groups) != 0 {
			t.Fatalf("%q without groups is %+v, %v", text, few, err)
		}
	})
}

func TestStatus(t *testing.T) {
	t.Parallel()
	s, err := parseStatus([]byte(statusText), true)
	if err != nil || s.tgid != 70 || s.parent != 7 || s.threads != 3 || s.uid != 4 || s.gid != 8 || !slices.Equal(s.groups, []uint32{9, 10}) || s.caps != 2 ||
		s.code != 12 || s.execs() || s.exits() || !s.dying() {
		t.Errorf("%+v, %v", s, err)
	}
	for what, c := range map[string]struct {
		change   [2]string
		bad      bool
		dying    bool
		execs    bool
		exitsNow bool
	}{
		"no gid":                {[2]string{"Gid:\t5\t6\t7\t8\n", ""}, true, false, false, false},
		"a gid too few":         {[2]string{"Gid:\t5\t6\t7\t8\n", "Gid:\t5\t6\t7\n"}, true, false, false, false},
		"uid twice":             {[2]string{"Gid:", "Uid:\t0\t0\t0\t0\nGid:"}, true, false, false, false},
		"a group that is none":  {[2]string{"9 10", "9 x"}, true, false, false, false},
		"an id out of range":    {[2]string{"9 10", "9 4294967296"}, true, false, false, false},
		"no capabilities":       {[2]string{"CapEff:", "CapPrm:"}, true, false, false, false},
		"cut off":               {[2]string{"CapEff:\t0000000000000002\n", ""}, true, false, false, false},
		"a stopping signal":     {[2]string{"ShdPnd:\t0000000000004000", "ShdPnd:\t0000000000080000"}, false, false, false, false},
		"a caught signal":       {[2]string{"SigCgt:\t0000000000000004", "SigCgt:\t0000000000004000"}, false, false, false, false},
		"a signal that kills":   {[2]string{"SigPnd:\t0000000000000001", "SigPnd:\t0000000000000101"}, false, true, false, false},
		"no program":            {[2]string{"VmExe:\t       4 kB\nVmLib:\t    8 kB\n", "VmExe:\t       0 kB\nVmLib:\t    0 kB\n"}, false, true, true, false},
		"no memory, so it ends": {[2]string{"VmExe:\t       4 kB\nVmLib:\t    8 kB\n", ""}, false, true, false, true},
	} {
		s, err := parseStatus([]byte(strings.Replace(statusText, c.change[0], c.change[1], 1)), true)
		if (err != nil) != c.bad || !c.bad && (s.dying() != c.dying || s.execs() != c.execs || s.exits() != c.exitsNow) {
			t.Errorf("%s: %+v, %v", what, s, err)
		}
	}
}

func TestPidsGoInACircle(t *testing.T) {
	t.Parallel()
	const most = 32768
	for _, c := range []struct {
		pid, last uint32
		want      bool
	}{
		{101, 100, true}, {100, 100, false}, {99, 100, false}, {5000, 100, true},
		{301, 32760, true}, {32767, 32760, true}, {32760, 301, false}, {32000, 400, false},
		{40000, 100, false}, {100, 40000, false},
	} {
		if got := follows(c.pid, c.last, most); got != c.want {
			t.Errorf("pid %d after %d: %v", c.pid, c.last, got)
		}
	}
}

func TestUnitOf(t *testing.T) {
	t.Parallel()
	for cgroup, want := range map[string]string{
		"0::/system.slice/nginx.service\n":                                           "nginx.service",
		"0::/system.slice/system-getty.slice/getty@tty1.service\n":                   "getty@tty1.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service\n": "user@1000.service",
		"0::/user.slice/user-1000.slice/session-3.scope\n":                           "session-3.scope",
		"0::/\n":                     "",
		"0::/../nginx.service\n":     "",
		"0::/docker/abc/x.service\n": "",
		"12:cpu:/x\n1:name=systemd:/system.slice/cron.service\n": "cron.service",
		// whoever may make groups of another hierarchy may call them so
		"8:pids:/a:name=systemd:/nginx.service\n1:name=systemd:/user.slice/b.scope\n": "b.scope",
		"8:pids:/0::/nginx.service\n0::/b.scope\n":                                    "b.scope",
		"1:name=other:/nginx.service\n":                                               "",
		"":                                                                            "",
	} {
		if got := unitOf([]byte(cgroup)); got != want {
			t.Errorf("%q is unit %q, want %q", cgroup, got, want)
		}
	}
}

func FuzzUnitOf(f *testing.F) {
	f.Add("0::/system.slice/nginx.service\n")
	f.Add("1:name=systemd:/user.slice/a.slice/b.scope\n0::/\n")
	f.Add("8:pids:/a:name=systemd:/nginx.service\n")
	f.Fuzz(func(t *testing.T, cgroup string) {
		if unit := unitOf([]byte(cgroup)); strings.ContainsAny(unit, "/") || unit != "" && !strings.Contains(cgroup, unit) {
			t.Fatalf("%q is unit %q", cgroup, unit)
		}
	})
}

func TestValidUnit(t *testing.T) {
	t.Parallel()
	for name, valid := range map[string]bool{
		"nginx.service": true, "worker@.service": true, "worker@7.service": true, "session-1.scope": true, `a\x2db:c_d.service`: true,
		"nginx": false, ".service": false, "a.slice": false, "a b.service": false, "a/b.service": false, "ä.service": false, "": false,
		strings.Repeat("a", 248) + ".service": false, strings.Repeat("a", 247) + ".service": true,
	} {
		if err := ValidUnit(name); (err == nil) != valid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzValidUnit(f *testing.F) {
	f.Add("worker@7.service")
	f.Add("a b.scope")
	f.Fuzz(func(t *testing.T, name string) {
		if ValidUnit(name) == nil && (!slices.Equal(strings.Fields(name), []string{name}) || len(name) > unitMost) {
			t.Fatalf("%q", name)
		}
	})
}

// FuzzIDMap: a map has an id if and only if a line of it does.
func FuzzIDMap(f *testing.F) {
	f.Add("         0          0 4294967295\n", uint32(4294967295))
	f.Add("0 2001 1\n1 100000 65536\n", uint32(2001))
	f.Add("0 4294967294 4294967295\n", uint32(0))
	f.Fuzz(func(t *testing.T, text string, id uint32) {
		any := false
		for line := range strings.Lines(text) {
			any = any || hasID([]byte(line), id)
		}
		if hasID([]byte(text), id) != any {
			t.Fatalf("%q and %d", text, id)
		}
	})
	for _, c := range []struct {
		id   uint32
		want bool
	}{{2001, true}, {2002, false}, {0, false}, {100000, true}, {165535, true}, {165536, false}} {
		if hasID([]byte("0 2001 1\n1 100000 65536\n"), c.id) != c.want {
			f.Errorf("%d", c.id)
		}
	}
}
