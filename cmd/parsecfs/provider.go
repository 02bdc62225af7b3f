package main

import (
	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
)

func providerCommand() *cobra.Command {
	return group("provider", "Give a provider another name", providerRenameCommand())
}

func providerRenameCommand() *cobra.Command {
	var flags stateFlags
	cmd := &cobra.Command{
		Use:   "rename OLD NEW",
		Short: "Give a provider another name; the daemon must not run",
		Long: `Give a provider another name. A provider is known by its name: under a new one in the configuration it would be another
one, without keys. Unmount, run this, and change its name in the configuration, default_provider and wrapping too.

Links in keys/ to its keys follow. A provider that has the new name, and no key, goes.`,
		Args: positional(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return fs.RenameProvider(cmd.Context(), o, args[0], args[1])
		},
	}
	flags.add(cmd)
	return cmd
}
