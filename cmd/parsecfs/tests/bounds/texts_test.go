package bounds

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// openAll opens each file so many times, as many at once as it may, and reads some of each. It fails where it could open none.
const openAll = `
import errno, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
times, paths = int(sys.argv[1]), sys.argv[2:]
for path in paths:
    held = []
    opened = 0
    while opened < times:
        try:
            held.append(os.open(path, os.O_RDONLY))
            opened += 1
            if opened % 100 == 1:
                os.pread(held[-1], 65536, 0)
        except OSError as e:
            assert e.errno == errno.EAGAIN and held, (path, e)
            for fd in held:
                os.close(fd)
            held = []
    for fd in held:
        os.close(fd)
`

// TestTenThousandOpensOfEveryText: whoever opens all texts that there are does not fill the daemon's memory, and others are
// served meanwhile.
func TestTenThousandOpensOfEveryText(t *testing.T) {
	t.Parallel()
	const most = 100 << 10 // KiB
	times := 250
	if os.Getenv("PARSECFS_TEST_LONG") != "" {
		times = 10_000
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	provider := filepath.Join(m.Dir, "providers/software")
	key := filepath.Join(provider, "keys/k")
	must(t, owner, "mkdir "+key+" && echo ecdsa-p256-sha256 > "+key+"/generate")
	must(t, 0, fmt.Sprintf("! cat %s/sign && ! cat %s/generate", key, key)) // failures for last_error
	paths := []string{m.Dir + "/README", m.Dir + "/version", m.Dir + "/last_error"}
	for _, name := range []string{"info", "status", "capabilities", "capabilities.json"} {
		paths = append(paths, filepath.Join(provider, name))
	}
	for _, name := range []string{"attributes", "capabilities", "certificate", "last_error", "public.pem", "public.der", "public.ssh",
		"public.jwk"} {
		paths = append(paths, filepath.Join(key, name))
	}
	done := make(chan error, 1)
	go func() {
		out, err := as(65534, fmt.Sprintf("/usr/bin/python3 -c '%s' %d %s", openAll, times, strings.Join(paths, " ")))
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		done <- err
	}()
	highest := 0
	for served := 0; ; served++ {
		highest = max(highest, resident(t, m.Process().Pid))
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			t.Logf("at most %d KiB; root signed %d times meanwhile", highest, served)
			if highest > most {
				t.Errorf("the daemon took %d KiB", highest)
			}
			if served == 0 {
				t.Error("root did not sign once")
			}
			return
		default:
		}
		must(t, 0, fmt.Sprintf("exec 3<>%s/sign && echo message >&3 && cat <&3 | grep -q .", key))
	}
}

// resident is VmRSS, in KiB.
func resident(t *testing.T, pid int) (kib int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
