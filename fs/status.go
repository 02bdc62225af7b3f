package fs

import (
	"errors"
	"fmt"
	"strings"
)

// Status is how a daemon is.
type Status struct {
	Mountpoint string           `json:"mountpoint"` // empty: not yet
	Transport  Transport        `json:"transport"`  // uring or device
	Providers  []ProviderStatus `json:"providers"`
}

// ProviderStatus is what a provider's status file says.
type ProviderStatus struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// Ready says whether the tree is mounted, and every provider is ready.
func (s *Status) Ready() bool {
	for _, p := range s.Providers {
		if p.Status != "ready" {
			return false
		}
	}
	return s.Mountpoint != ""
}

// GetStatus asks the daemon that holds the state.
func GetStatus(o StateOptions) (s Status, err error) {
	c, err := dial(o.StateDir)
	if errors.Is(err, errNoDaemon) {
		return s, &Error{KindState, fmt.Errorf("no daemon holds the state in %s", o.StateDir),
			"run parsecfs mount, or give the daemon's --state-dir"}
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return s, e
	}
	if err != nil {
		return s, &Error{Kind: KindState, Err: err}
	}
	defer c.close()
	err = c.call(request{Command: commandStatus}, func(r *response) error {
		s = *r.Status
		return nil
	})
	return s, err
}

func (c *control) status(send func(Status) error) error {
	s := Status{}
	if m := c.mounted.Load(); m != nil {
		s = *m
	}
	for _, p := range c.kim.Providers() {
		s.Providers = append(s.Providers, ProviderStatus{p.Name(), strings.TrimSpace(p.Status(c.ctx))})
	}
	return send(s)
}
