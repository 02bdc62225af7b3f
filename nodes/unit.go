package nodes

import "strings"

// unitOf finds a process's systemd unit in its cgroup (/proc/<pid>/cgroup, cgroups(7)): the first component below the
// host root's slices, so that no user can name a unit of their own; everything under a user's manager counts as
// user@UID.service. Without one, or inside a cgroup namespace that is not the host's, it is "".
func unitOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if !ok {
			// systemd's own hierarchy where controllers still have theirs (cgroups v1)
			if _, after, found := strings.Cut(line, ":name=systemd:/"); found {
				path, ok = strings.TrimSuffix(after, "\n"), true
			}
		}
		if !ok {
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
