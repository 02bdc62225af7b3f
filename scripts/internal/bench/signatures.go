package main

import (
	"path/filepath"
	"slices"
	"time"
)

// The rounds and their length: of P-256, of the other algorithms, and of everything in the short form.
const (
	mainRounds, mainSpan   = 5, 300 * time.Millisecond
	otherRounds, otherSpan = 3, 150 * time.Millisecond
	shortRounds, shortSpan = 2, 60 * time.Millisecond
)

var manyWorkers = []int{1, 2, 4, 16, 64}

// way is one of the ways to ask that a server has.
type way struct {
	name   string
	server string
	by     work
	most   int // workers; 0: any number
}

// signatures measures all algorithms, by every way to ask.
func (b *bench) signatures() error {
	for i := range algorithms {
		a := &algorithms[i]
		ways := []way{{name: wayInProcess, server: serverBare, by: a.inProcess}}
		for _, transport := range []string{transportDevice, transportUring} {
			more, err := b.floorWays(a, transport)
			if err != nil {
				return err
			}
			ways = append(ways, more...)
			if more, err = b.ourWays(a, transport); err != nil {
				return err
			}
			ways = append(ways, more...)
		}
		rounds, span := otherRounds, otherSpan
		if i == 0 {
			rounds, span = mainRounds, mainSpan
			if _, err := b.socket(); err != nil {
				return err
			}
			t := &target{b.socketPath(), a.message, a.least}
			ways = append(ways, way{name: wayConnect, server: serverSocket, by: t.freshSocket},
				way{name: wayConnected, server: serverSocket, by: t.keptSocket})
		}
		// The same way on all servers, one after the other.
		order := []string{wayInProcess, wayFresh, wayConnect, wayKept, wayConnected, wayIoctl, waySlot, wayDropBox}
		slices.SortStableFunc(ways, func(x, y way) int { return slices.Index(order, x.name) - slices.Index(order, y.name) })
		var cells []*cell
		for _, workers := range manyWorkers {
			for _, w := range ways {
				if w.most == 0 || workers <= w.most {
					c := newCell(partSignatures, w.server, w.name, workers, w.by)
					c.request.Algorithm = a.template
					cells = append(cells, c)
				}
			}
		}
		if err := b.inTurns(rounds, span, cells); err != nil {
			return err
		}
	}
	return nil
}

// callWays are those that the minimal handler has too.
func (b *bench) callWays(t *target, server string) []way {
	ways := []way{{name: wayFresh, server: server, by: t.fresh}, {name: wayKept, server: server, by: t.kept}}
	if err := t.answersIoctl(); err != nil {
		b.results.skip(server+", "+wayIoctl, err)
		return ways
	}
	return append(ways, way{name: wayIoctl, server: server, by: t.ioctl})
}

func (b *bench) floorWays(a *algorithm, transport string) ([]way, error) {
	d, err := b.floor(transport)
	if err != nil {
		return nil, b.without(over(serverFloor, transport), transport, err)
	}
	return b.callWays(&target{filepath.Join(d.dir, a.template), a.message, a.least}, over(serverFloor, transport)), nil
}

func (b *bench) ourWays(a *algorithm, transport string) ([]way, error) {
	d, err := b.mount("plain", transport, softwareOnly)
	if err != nil {
		return nil, b.without(over(serverOurs, transport), transport, err)
	}
	dir, err := d.key("default", a.template, a.template)
	if err != nil {
		return nil, err
	}
	t := &target{filepath.Join(dir, a.file), a.message, a.least}
	server := over(serverOurs, transport)
	return append(b.callWays(t, server), way{name: waySlot, server: server, by: t.slot},
		way{name: wayDropBox, server: server, by: t.dropBox, most: 1}), nil
}

// onEach has f use a key of parsecfs on each transport that there is.
func (b *bench) onEach(key string, f func(server string, t *target)) error {
	for _, transport := range []string{transportDevice, transportUring} {
		server := over(serverOurs, transport)
		d, err := b.mount("plain", transport, softwareOnly)
		if err != nil {
			if err := b.without(server, transport, err); err != nil {
				return err
			}
			continue
		}
		t, err := d.signer(key)
		if err != nil {
			return err
		}
		f(server, t)
	}
	return nil
}

// without goes on without a server on io_uring; without one on the device nothing makes sense.
func (b *bench) without(server, transport string, err error) error {
	if transport == transportDevice {
		return err
	}
	b.results.skip(server, err)
	return nil
}

// conditions measures what else a mount may have to do for a signature.
func (b *bench) conditions() error {
	const audit, units = "[audit]\n", "[authenticator]\nauth_type = \"SystemdUnit\"\n"
	var cells []*cell
	var losing []string
	for _, transport := range []string{transportDevice, transportUring} {
		add := func(what string, workers int, way string, by work) {
			cells = append(cells, newCell(partConditions, over(serverOurs, transport)+what, way, workers, by))
		}
		for _, m := range []struct{ name, what, config string }{
			{"plain", "", ""}, {"audited", ", audit trail", audit}, {"units", ", in a systemd unit", units},
		} {
			d, err := b.mount(m.name, transport, m.config+softwareOnly)
			if err != nil {
				if err := b.without(over(serverOurs, transport)+m.what, transport, err); err != nil {
					return err
				}
				continue
			}
			t, err := d.signer("condition")
			if err != nil {
				return err
			}
			for _, workers := range []int{1, 16} {
				add(m.what, workers, wayFresh, t.fresh)
				add(m.what, workers, wayKept, t.kept)
			}
		}
		d, err := b.mount("plain", transport, softwareOnly)
		if err != nil {
			continue // said above
		}
		for _, m := range []struct {
			name, what string
			foreign    bool
		}{{"lost", ", owner, after somebody else lost a right", false}, {"foreign", ", not the owner, after somebody else lost a right", true}} {
			t, err := d.signer(m.name)
			if err != nil {
				return err
			}
			if m.foreign {
				if err := giveAway(t.path); err != nil {
					return err
				}
			}
			held, err := t.held()
			if err != nil {
				return err
			}
			losing = append(losing, t.path)
			add(m.what, 1, wayFresh, t.fresh)
			add(m.what, 1, wayKept+" from before", held)
		}
	}
	if err := lose(losing...); err != nil {
		return err
	}
	return b.inTurns(mainRounds, otherSpan, cells)
}
