package main

import (
	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
)

func unmountCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unmount MOUNTPOINT",
		Short: "Unmount; the daemon then exits",
		Args:  positional(cobra.ExactArgs(1)),
		RunE:  func(_ *cobra.Command, args []string) error { return fs.Unmount(args[0]) },
	}
}
