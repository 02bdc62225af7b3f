# Signs in one of Ruby's ways: ruby sign.rb HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
require "fileutils"

HOW, SIGN, MESSAGE, SIGNATURE = ARGV
Thread.report_on_exception = false

def descriptor(message, signature)
  File.open(SIGN, "r+b") do |f|
    f.write(File.binread(message))
    f.flush
    File.binwrite(signature, f.read)
  end
end

def files(message, signature)
  File.binwrite(SIGN, File.binread(message))
  yield if block_given?
  File.binwrite(signature, File.binread(SIGN))
end

def slot(message, signature)
  path = "#{SIGN}.d/#{File.basename(signature)}"
  File.binwrite(path, File.binread(message))
  File.binwrite(signature, File.binread(path))
  File.unlink(path)
end

def eight(&work)
  (0..7).map { |n| Thread.new { work.call("#{MESSAGE}.#{n}", "#{SIGNATURE}.#{n}") } }.each(&:join)
end

case HOW
when "descriptor" then descriptor(MESSAGE, SIGNATURE)
when "rewind"
  File.open(SIGN, "r+b") do |f|
    f.write(File.binread(MESSAGE))
    f.rewind
    File.binwrite(SIGNATURE, f.read)
  end
when "sysread"
  File.open(SIGN, "r+b") do |f|
    f.syswrite(File.binread(MESSAGE))
    File.binwrite(SIGNATURE, f.sysread(8192))
  end
when "pread"
  File.open(SIGN, "r+b") do |f|
    f.pwrite(File.binread(MESSAGE), 0)
    File.binwrite(SIGNATURE, f.pread(8192, 0))
  end
when "copy_stream descriptor"
  File.open(SIGN, "r+b") do |f|
    IO.copy_stream(MESSAGE, f)
    f.flush
    IO.copy_stream(f, SIGNATURE)
  end
when "files" then files(MESSAGE, SIGNATURE)
when "cp"
  FileUtils.cp(MESSAGE, SIGN)
  FileUtils.cp(SIGN, SIGNATURE)
when "copy_stream"
  IO.copy_stream(MESSAGE, SIGN)
  IO.copy_stream(SIGN, SIGNATURE)
when "slot" then slot(MESSAGE, SIGNATURE)
when "eight" then eight { |m, s| descriptor(m, s) }
when "eight-slots" then eight { |m, s| slot(m, s) }
when "eight-processes"
  (0..7).each { |n| fork { files("#{MESSAGE}.#{n}", "#{SIGNATURE}.#{n}") } }
  exit Process.waitall.all? { |_, status| status.success? }
when "eight-files"
  written = Queue.new
  eight do |m, s|
    files(m, s) do
      written << s
      Thread.pass until written.size == 8
    end
  end
else abort "no such way: #{HOW}"
end
