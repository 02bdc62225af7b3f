package caller

import (
	"sync"
	"testing"
)

// However many threads of one user look, another user's turn comes next, and no more look at once than may.
func TestTurns(t *testing.T) {
	t.Parallel()
	var all turns
	var mine []func()
	for range turnsEach {
		mine = append(mine, all.take(1))
	}
	var wait sync.WaitGroup
	for range 1000 {
		wait.Go(func() { all.take(1)() })
	}
	other := all.take(2) // while those of the first user wait
	var more []func()
	for uid := uint32(3); len(more) < turnsMost-turnsEach-1; uid++ {
		more = append(more, all.take(uid))
	}
	late := make(chan func())
	go func() { late <- all.take(100) }()
	select {
	case <-late:
		t.Error("more look than may")
	default:
	}
	other()
	(<-late)()
	for _, give := range append(mine, more...) {
		give()
	}
	wait.Wait()
	if len(all.users) != 0 || len(all.ready) != 0 || all.taken != 0 {
		t.Errorf("left behind: %d users, %d of them ready, %d turns", len(all.users), len(all.ready), all.taken)
	}
}
