package fs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/fs/uring"
)

// Transport is how the kernel's requests come.
type Transport string

const (
	TransportAuto   Transport = "auto" // by io_uring where the kernel offers it
	TransportURing  Transport = "uring"
	TransportDevice Transport = "device" // by /dev/fuse
)

// uringHint is for whoever wants io_uring and does not get it.
const uringHint = "echo Y > " + uring.Parameter + " as root, before the mount (Linux 6.14; fuse.enable_uring=1 on the kernel's " +
	"command line keeps it); sysctl kernel.io_uring_disabled, or a container's seccomp profile, can refuse it too; " +
	"transport = \"device\" does without"

// prepareRings takes what a mount over io_uring needs; nil where the mount is to be by the device.
func prepareRings(o MountOptions) (*uring.Transport, error) {
	wanted := o.Config.Mount.Transport
	if wanted == TransportDevice {
		return nil, nil
	}
	err := uring.Offered()
	if err == nil {
		var rings *uring.Transport
		if rings, err = uring.Prepare(uring.Options{MaxWrite: maxTransfer, Log: o.Log}); err == nil {
			return rings, nil
		}
	}
	return nil, o.device(err)
}

// device tells that requests come by /dev/fuse, or fails where the configuration wants io_uring.
func (o MountOptions) device(why error) error {
	if o.Config.Mount.Transport == TransportURing {
		return &Error{KindFUSE, fmt.Errorf("[mount] transport is uring, which does not work here: %w", why), uringHint}
	}
	o.Log.Info("requests come by /dev/fuse, not by io_uring", "why", why)
	return nil
}

// withoutRings mounts anew where the kernel has granted io_uring but the rings could not be registered: everybody who used that
// connection would wait for ever.
func withoutRings(o MountOptions, why error) (fd int, err error) {
	// Its connection is closed, so that nobody waits on it; a mount that is in use is only detached.
	if err := unmount(o.Mountpoint, true); err != nil && !errors.Is(err, unix.EINVAL) {
		return -1, &Error{Kind: KindFUSE, Err: fmt.Errorf("unmounting what io_uring did not work on: %w", err)}
	}
	if err := o.device(why); err != nil {
		return -1, err
	}
	c, err := connect(o.Mountpoint, o.NeedOthers)
	return c.fd, err
}
