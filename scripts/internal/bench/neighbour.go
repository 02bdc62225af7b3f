package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// nobody is another user.
const nobody = 65534

// heavyKeys are how many RSA-4096 keys the other user generates, all at once.
const heavyKeys = 40

// neighbour measures a signature alone, and while another user generates RSA keys.
func (b *bench) neighbour() error {
	d, err := b.mount("neighbour", transportDevice, softwareOnly)
	if err != nil {
		return err
	}
	defer b.kill("neighbour-" + transportDevice) // it would go on making keys
	t, err := d.signer("neighbour")
	if err != nil {
		return err
	}
	one := func(server string) error {
		return b.inTurns(mainRounds, mainSpan, []*cell{newCell(partNeighbour, server, wayFresh, 1, t.fresh)})
	}
	if err := one(over(serverOurs, transportDevice) + ", alone"); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "generate", filepath.Join(d.dir, "providers/default/keys"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Stderr = os.Stderr
	begun, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	if _, err := begun.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the other user's keys: %w", err)
	}
	if err := one(over(serverOurs, transportDevice) + ", beside another user's RSA keys"); err != nil {
		return err
	}
	select {
	case err := <-ended:
		return fmt.Errorf("the other user's keys were ready before the end of the measurement: %w", err)
	default:
		return nil
	}
}

// generate makes the keys, and says when their making has begun.
func generate(keys string) error {
	var wg sync.WaitGroup
	errs := make(chan error, heavyKeys)
	for i := range heavyKeys {
		key := filepath.Join(keys, "heavy-"+strconv.Itoa(i))
		if err := os.Mkdir(key, 0o700); err != nil {
			return err
		}
		wg.Go(func() {
			if err := os.WriteFile(filepath.Join(key, "generate"), []byte("rsa-4096-pss-sha256\n"), 0o600); err != nil {
				errs <- err
			}
		})
	}
	fmt.Println("begun")
	wg.Wait()
	close(errs)
	return <-errs
}
