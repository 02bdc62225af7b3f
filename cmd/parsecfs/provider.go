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
		Short: "Give a provider another name, while no daemon runs",
		Long: `Give a provider another name. parsecfs finds a provider's keys by the provider's name: if you only changed the name in the
configuration, you would get a new provider without keys. So unmount, run this command, and then change the name in the
configuration, also where default_provider and wrapping use it.

The links in keys/ to its keys follow. If another provider has the new name and no keys, it is removed.`,
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
