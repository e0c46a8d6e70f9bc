//! Rust's side of the interop tests: requests in JSON, one a line, answered likewise; see
//! `peers.exs` for what can be asked. Bytes travel as hexadecimal digits.
//!
//! ```text
//! interop-peer NAMESPACE DIR
//! ```

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::Duration;

use serde_json::{Value, json};
use snakepit_shm::{
    Descriptor, Handle, SegmentOptions, SegmentReader, SegmentWriter, ShmError, round_up_capacity,
};

type Outcome = Result<Value, ShmError>;

struct Peer {
    namespace: String,
    dir: String,
    writers: HashMap<String, SegmentWriter>,
    readers: HashMap<String, SegmentReader>,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut peer = Peer {
        namespace: args.next().expect("a namespace"),
        dir: args.next().expect("a directory"),
        writers: HashMap::new(),
        readers: HashMap::new(),
    };
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        if request["op"] == "stop" {
            break;
        }
        let answer = match peer.answer(&request) {
            Ok(answer) => answer,
            Err(error) => json!({ "error": error.code(), "message": error.to_string() }),
        };
        writeln!(out, "{answer}").expect("somebody who listens");
    }
}

impl Peer {
    fn answer(&mut self, request: &Value) -> Outcome {
        let name = request["name"].as_str().unwrap_or_default().to_owned();
        match request["op"].as_str().expect("an operation") {
            "create" => {
                let options = self.options(&name).size(number(request, "size"));
                let writer = options.slots(number(request, "slots")).create()?;
                self.writers.insert(name, writer);
                Ok(json!({}))
            }
            "write" => {
                let descriptor = descriptor(request)?;
                let version = self
                    .writer(&name)
                    .write_described(&bytes(request), &descriptor)?;
                Ok(json!({ "version": version }))
            }
            "write_at" => {
                let offset = number(request, "offset");
                let version = self.writer(&name).write_at(offset, &bytes(request))?;
                Ok(json!({ "version": version }))
            }
            "seal" => {
                self.writer(&name).seal()?;
                Ok(json!({}))
            }
            "share" => {
                let data = bytes(request);
                let size = round_up_capacity(data.len())?;
                let mut writer = self.options(&name).size(size).slots(1).create()?;
                writer.write_described(&data, &descriptor(request)?)?;
                writer.seal()?;
                let handle = writer.handle()?.to_value();
                self.writers.insert(name, writer);
                Ok(json!({ "handle": handle }))
            }
            "take_over" => {
                let writer = self.options(&name).attach_writer()?;
                self.writers.insert(name, writer);
                Ok(json!({}))
            }
            "hand_over" => {
                self.writers.remove(&name).expect("a writer").release()?;
                Ok(json!({}))
            }
            "end" => {
                self.writers.remove(&name).expect("a writer").close()?;
                Ok(json!({}))
            }
            "attach" => {
                let reader = self.options(&name).attach_reader()?;
                self.readers.insert(name, reader);
                Ok(json!({}))
            }
            "read" => {
                let reader = self.reader(&name);
                let data = hex(reader.read()?);
                let descriptor = reader.info()?.descriptor()?;
                Ok(json!({
                    "data": data,
                    "version": reader.last_version(),
                    "dtype": descriptor.dtype(),
                    "shape": descriptor.shape(),
                }))
            }
            "wait" => {
                let since = request["since"].as_u64().expect("a version");
                let patience = Some(Duration::from_secs(20));
                let version = self.reader(&name).wait_changed(since, patience)?;
                Ok(json!({ "version": version }))
            }
            "detach" => {
                self.readers.remove(&name).expect("a reader").close()?;
                Ok(json!({}))
            }
            "resolve" => {
                let view = Handle::from_value(&request["handle"])?.open(&self.dir)?;
                let descriptor = view.descriptor();
                Ok(json!({
                    "data": hex(&view),
                    "dtype": descriptor.dtype(),
                    "shape": descriptor.shape(),
                }))
            }
            other => panic!("no operation {other}"),
        }
    }

    fn options(&self, name: &str) -> SegmentOptions {
        SegmentOptions::new(name)
            .namespace(&self.namespace)
            .dir(&self.dir)
    }

    fn writer(&mut self, name: &str) -> &mut SegmentWriter {
        self.writers.get_mut(name).expect("a writer")
    }

    fn reader(&mut self, name: &str) -> &mut SegmentReader {
        self.readers.get_mut(name).expect("a reader")
    }
}

fn descriptor(request: &Value) -> Result<Descriptor, ShmError> {
    let Some(dtype) = request["dtype"].as_str() else {
        return Ok(Descriptor::RAW);
    };
    let shape = request["shape"].as_array().expect("a shape");
    let shape: Vec<u64> = shape.iter().filter_map(Value::as_u64).collect();
    Descriptor::numpy(dtype, &shape)
}

fn number(request: &Value, field: &str) -> usize {
    let number = request[field].as_u64().expect("a number");
    usize::try_from(number).expect("a number of bytes")
}

fn bytes(request: &Value) -> Vec<u8> {
    let digits = request["data"].as_str().expect("hexadecimal digits");
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits"))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
