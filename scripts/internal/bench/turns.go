package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
)

// heavyKeys are how many RSA-4096 keys the other user generates, all at once.
const heavyKeys = 40

// turns measures how much longer a signature of the key bench takes while another user generates RSA keys.
func turns(keys, uid string) error {
	other, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return err
	}
	prepare := fresh(file(keys, "bench"))
	rates := func() (list []float64, err error) {
		for range compared {
			rate, err := measure(1, prepare)
			if err != nil {
				return nil, err
			}
			list = append(list, rate)
		}
		slices.Sort(list)
		return list, nil
	}
	alone, err := rates()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "generate", keys)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(other), Gid: uint32(other)}}
	cmd.Stderr = os.Stderr
	begun, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if _, err := begun.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the other user's keys: %w", err)
	}
	beside, err := rates()
	if err != nil {
		return err
	}
	if cmd.Process.Signal(syscall.Signal(0)) != nil {
		return fmt.Errorf("the other user's keys were ready before the end of the measurement")
	}
	fmt.Printf("a signature while another user generates %d RSA-4096 keys: %.0f/s, alone %.0f/s, %.2f times the time\n",
		heavyKeys, beside[compared/2], alone[compared/2], alone[compared/2]/beside[compared/2])
	return nil
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
