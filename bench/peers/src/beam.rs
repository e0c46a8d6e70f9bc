//! The other side of a Port of the BEAM: messages with their length before them, on standard input and output.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use snakepit_shm::{SegmentOptions, ShmError, round_up_capacity};
use snakepit_shm_bench::Result;
use snakepit_shm_bench::buffer::Buffer;
use snakepit_shm_bench::segment::NAMESPACE;

/// The word on the command line that makes the binary that.
pub const COMMAND: &str = "port";
const ACK: [u8; 8] = [0; 8];

/// Answers until its input ends.
///
/// # Errors
/// What keeps it from that.
pub fn run(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["messages", back] => messages(back.parse()?),
        ["names", dir, size] => names(dir, size.parse()?),
        ["regions", dir, there, answer, size, back] => {
            regions(dir, there, answer, size.parse()?, back.parse()?)
        }
        _ => Err("port messages|names|regions …".into()),
    }
}

/// The same bytes back, or so many others.
fn messages(back: usize) -> Result<()> {
    let mut heard = Vec::new();
    while hear(&mut heard)? {
        say(if back == 0 { &heard } else { &ACK[..back] })?;
    }
    Ok(())
}

/// Of each segment that is named: its value copied out, then eight bytes back.
fn names(dir: &str, size: usize) -> Result<()> {
    let mut name = Vec::new();
    let mut value = Buffer::new(size);
    while hear(&mut name)? {
        let options = SegmentOptions::new(String::from_utf8_lossy(&name))
            .namespace(NAMESPACE)
            .dir(dir);
        let reader = options.attach_reader()?;
        reader.read_into(&mut value)?;
        reader.close()?;
        say(&ACK)?;
    }
    Ok(())
}

/// Each value of one segment copied out, then one of our own published.
fn regions(dir: &str, there: &str, answer: &str, size: usize, back: usize) -> Result<()> {
    let options = |name: &str| SegmentOptions::new(name).namespace(NAMESPACE).dir(dir);
    let mut value = Buffer::new(size);
    let mut writer = options(answer).size(round_up_capacity(back)?).create()?;
    writer.write(&ACK)?;
    let reader = options(there).attach_reader()?;
    // Ends with the Port: it is closed to end us.
    std::thread::spawn(|| {
        let _ = std::io::stdin().lock().read(&mut [0]);
        std::process::exit(0);
    });
    say(b"ready")?;
    let mut seen = 0;
    loop {
        match reader.wait_changed(seen, Some(Duration::from_secs(60))) {
            Ok(_) => {}
            Err(ShmError::Closed { .. } | ShmError::Sealed { .. }) => return Ok(()),
            Err(ShmError::Timeout { .. }) => continue,
            Err(other) => return Err(other.into()),
        }
        seen = reader.read_into(&mut value)?.version;
        if back == size {
            writer.write(&value)?;
        } else {
            writer.write(&ACK[..back])?;
        }
    }
}

/// False at the end.
fn hear(message: &mut Vec<u8>) -> Result<bool> {
    let mut input = std::io::stdin().lock();
    let mut len = [0; 4];
    match input.read_exact(&mut len) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
        Err(other) => return Err(other.into()),
    }
    message.resize(u32::from_be_bytes(len) as usize, 0);
    input.read_exact(message)?;
    Ok(true)
}

fn say(message: &[u8]) -> Result<()> {
    let len = u32::try_from(message.len())?.to_be_bytes();
    // One system call for both where it fits: standard output would cut at newlines.
    let mut output =
        std::fs::File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned()?);
    if message.len() <= 4096 {
        output.write_all(&[&len[..], message].concat())?;
    } else {
        output.write_all(&len)?;
        output.write_all(message)?;
    }
    Ok(())
}
