package kim

import (
	"math/bits"
	"strconv"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Space is a set of names in a provider: those that all users share, or one user's own. Two keys in two spaces can have
// one name.
type Space int64

// Shared has the names in keys/.
const Shared Space = 0

// OwnSpace has a user's own names, in users/UID/.
func OwnSpace(uid uint32) Space { return Space(uid) + 1 }

// User is whose own names these are; false: all users share them.
func (s Space) User() (uid uint32, own bool) { return uint32(s - 1), s != Shared }

// String is the space's directory below its provider's.
func (s Space) String() string {
	uid, own := s.User()
	if !own {
		return "keys"
	}
	return "users/" + strconv.FormatUint(uint64(uid), 10)
}

// ParseUser reads a uid as the name of a directory has it: without zeros in front, and never that of nobody.
func ParseUser(name string) (uid uint32, ok bool) {
	n, err := strconv.ParseUint(name, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != name || CheckOwner(uint32(n), 0) != nil {
		return 0, false
	}
	return uint32(n), true
}

// SplitPath reads what names a key of a provider in bytes: a name in the space from, keys/NAME or users/UID/NAME. Errors are
// StatusInvalidArgument; the name may be none (ValidName).
func SplitPath(from Space, path string) (s Space, name string, err error) {
	if name, ok := strings.CutPrefix(path, "keys/"); ok {
		return Shared, name, nil
	}
	rest, ok := strings.CutPrefix(path, "users/")
	if !ok {
		return from, path, nil
	}
	user, name, _ := strings.Cut(rest, "/")
	uid, ok := ParseUser(user)
	if !ok {
		return 0, "", psa.Errorf(psa.StatusInvalidArgument, "%q is not a uid", user).WithHint("write NAME, keys/NAME or users/UID/NAME")
	}
	return OwnSpace(uid), name, nil
}

// Path is where the key stands below its provider's directory.
func (k Key) Path() string { return k.Space.String() + "/" + k.Name }

// Listed is what commands call the key: its name, or its path where that is a user's own name.
func (k Key) Listed() string {
	if k.Space == Shared {
		return k.Name
	}
	return k.Path()
}

// The inodes of users/UID are there for every uid, without a row of their own. Their numbers lie between those of keys and
// of what is not stored (1<<62), and are made of the provider's number and the uid.
const (
	userIno     = 1 << 61
	userShift   = 32
	usersNumber = userIno / 256 // the first number of a row of the table users
)

// MaxUsersProvider is the highest number of a provider that has users/: that many numbers are given out in 32 restores of
// backups, or in half a billion keys.
const MaxUsersProvider = 1<<(61-userShift) - 1

// UserInode is the number of the inode of users/UID in a provider whose number is at most MaxUsersProvider.
func UserInode(provider int64, uid uint32) uint64 {
	return userIno | uint64(provider)<<userShift | uint64(uid)
}

// userProvider is the provider whose users/UID has the inode; false: it is another one's.
func userProvider(ino uint64) (provider int64, ok bool) {
	return int64(ino &^ userIno >> userShift), ino >= userIno && ino < 2*userIno
}

// Rows of the table users make a tree below each provider, so that one which was taken away is missed. A row at level 0 says
// which inodes of 256 directories have a row; a row above it says which of 256 rows below it are there; and the provider's row
// has the top. Above level 0 the numbers are negative: no inode is of theirs.
const usersTop = 3

// usersAt is the number of a row at a level.
func usersAt(level int, index int64) int64 {
	if level == 0 {
		return usersNumber | index
	}
	return -(usersNumber<<level | index)
}

// above is the row that says whether this one is there, and where it says so.
func above(number int64) (parent int64, child uint64) {
	level, index := 0, number-usersNumber
	if number < 0 {
		level = bits.Len64(uint64(-number)) - bits.Len64(usersNumber)
		index = -number - usersNumber<<level
	}
	return usersAt(level+1, index>>8), uint64(index & 255)
}

// usersRow says whether rows of the table users have this number.
func usersRow(number int64) bool {
	return number >= usersNumber && number < 2*usersNumber || number < 0 && number > usersAt(usersTop, 0)
}

// noSuch is the error of a key that is not there.
func noSuch(s Space, name string) error {
	return psa.Errorf(psa.StatusDoesNotExist, "there is no key %s", Key{Space: s, Name: name}.Path())
}
