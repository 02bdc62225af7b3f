# Signs in one of Perl's ways: perl sign.pl HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
use strict;
use warnings;
use File::Basename;
use File::Copy;
use IO::Handle;

my ($how, $sign, $message, $signature) = @ARGV;

sub slurp {
	open my $f, '<:raw', $_[0] or die "$_[0]: $!\n";
	local $/;
	my $all = <$f>;
	die "$_[0]: $!\n" if $f->error || !defined $all;
	close $f or die "$_[0]: $!\n";
	return $all;
}

sub spew {
	open my $f, '>:raw', $_[0] or die "$_[0]: $!\n";
	print $f $_[1] or die "$_[0]: $!\n";
	close $f or die "$_[0]: $!\n";
}

sub descriptor {
	my ($message, $signature) = @_;
	open my $f, '+<:raw', $sign or die "open: $!\n";
	syswrite $f, slurp($message) or die "write: $!\n";
	sysread $f, my $result, 8192 or die "read: $!\n";
	spew($signature, $result);
}

sub slot {
	my ($message, $signature) = @_;
	my $slot = "$sign.d/" . basename($signature);
	spew($slot, slurp($message));
	spew($signature, slurp($slot));
	unlink $slot or die "unlink: $!\n";
}

sub processes {
	my $work = shift;
	for my $n (0 .. 7) {
		my $pid = fork // die "fork: $!\n";
		next if $pid;
		$work->("$message.$n", "$signature.$n");
		exit 0;
	}
	my $failed = 0;
	while (wait != -1) { $failed ||= $? }
	exit 1 if $failed;
}

if ($how eq 'sysread') {
	descriptor($message, $signature);
} elsif ($how eq 'buffered') {
	open my $f, '+<:raw', $sign or die "open: $!\n";
	print $f slurp($message) or die "write: $!\n";
	seek $f, 0, 1 or die "seek: $!\n"; # flushes too
	local $/;
	my $result = <$f>;
	die "read: $!\n" if $f->error;
	spew($signature, $result);
} elsif ($how eq 'files') {
	spew($sign, slurp($message));
	spew($signature, slurp($sign));
} elsif ($how eq 'copy') {
	copy($message, $sign) or die "copy: $!\n";
	copy($sign, $signature) or die "copy: $!\n";
} elsif ($how eq 'slot') {
	slot($message, $signature);
} elsif ($how eq 'eight') {
	processes(\&descriptor);
} elsif ($how eq 'eight-slots') {
	processes(\&slot);
} elsif ($how eq 'eight-processes') {
	processes(sub { spew($sign, slurp($_[0])); spew($_[1], slurp($sign)) });
} elsif ($how eq 'eight-threads') {
	require threads;
	for my $t (map { my $n = $_; threads->create({context => 'scalar'}, sub { descriptor("$message.$n", "$signature.$n"); 1 }) } 0 .. 7) {
		$t->join or exit 1;
	}
} elsif ($how eq 'eight-files') {
	require threads;
	my @all = map { my $n = $_; threads->create({context => 'scalar'}, sub { spew($sign, slurp("$message.$n")); 1 }) } 0 .. 7;
	$_->join or exit 1 for @all;
	@all = map { my $n = $_; threads->create({context => 'scalar'}, sub { spew("$signature.$n", slurp($sign)); 1 }) } 0 .. 7;
	my $failed = 0;
	$_->join or $failed = 1 for @all;
	exit $failed;
} else {
	die "no such way: $how\n";
}
