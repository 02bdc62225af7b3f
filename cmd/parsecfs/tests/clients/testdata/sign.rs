// Signs in one of Rust's ways: sign-rs HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

fn open(sign: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(sign)
}

fn descriptor(sign: &str, message: &str, signature: &str) -> io::Result<()> {
    let mut f = open(sign)?;
    f.write_all(&fs::read(message)?)?;
    let mut result = Vec::new();
    f.read_to_end(&mut result)?;
    fs::write(signature, result)
}

fn slot(sign: &str, message: &str, signature: &str) -> io::Result<()> {
    let slot = format!("{sign}.d/{}", Path::new(signature).file_name().unwrap().to_str().unwrap());
    fs::write(&slot, fs::read(message)?)?;
    fs::write(signature, fs::read(&slot)?)?;
    fs::remove_file(slot)
}

fn eight(sign: &str, message: &str, signature: &str, work: impl Fn(&str, &str, &str) -> io::Result<()> + Sync) -> io::Result<()> {
    let work = &work;
    thread::scope(|s| {
        let all: Vec<_> = (0..8)
            .map(|n| s.spawn(move || work(sign, &format!("{message}.{n}"), &format!("{signature}.{n}"))))
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).fold(Ok(()), |a, b| a.and(b))
    })
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let (sign, message, signature) = (args[2].as_str(), args[3].as_str(), args[4].as_str());
    match args[1].as_str() {
        "descriptor" => descriptor(sign, message, signature),
        "seek" => {
            let mut f = open(sign)?;
            f.write_all(&fs::read(message)?)?;
            f.seek(SeekFrom::Start(0))?;
            let mut result = Vec::new();
            f.read_to_end(&mut result)?;
            fs::write(signature, result)
        }
        "read_at" => {
            let f = open(sign)?;
            f.write_all_at(&fs::read(message)?, 0)?;
            let mut result = vec![0; 8192];
            let n = f.read_at(&mut result, 0)?;
            fs::write(signature, &result[..n])
        }
        "io::copy" => {
            let mut f = open(sign)?;
            io::copy(&mut File::open(message)?, &mut f)?;
            io::copy(&mut f, &mut File::create(signature)?)?;
            Ok(())
        }
        "files" => {
            fs::write(sign, fs::read(message)?)?;
            fs::write(signature, fs::read(sign)?)
        }
        "io::copy of files" => {
            io::copy(&mut File::open(message)?, &mut File::create(sign)?)?;
            io::copy(&mut File::open(sign)?, &mut File::create(signature)?)?;
            Ok(())
        }
        "fs::copy" => {
            fs::copy(message, sign)?;
            fs::copy(sign, signature)?;
            Ok(())
        }
        "slot" => slot(sign, message, signature),
        "eight" => eight(sign, message, signature, descriptor),
        "eight-slots" => eight(sign, message, signature, slot),
        "eight-files" => {
            let all = Arc::new(Barrier::new(8));
            eight(sign, message, signature, |sign, message, signature| {
                let written = fs::write(sign, fs::read(message)?);
                all.wait();
                written?;
                fs::write(signature, fs::read(sign)?)
            })
        }
        how => panic!("no such way: {how}"),
    }
}
