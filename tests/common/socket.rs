//! A client of the daemon's socket that keeps its connection, as who reads files there does.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::Warmfs;

/// For an answer; longer than any takes on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What an answer takes that waits for nothing. More than one may be missed, not all.
const AT_ONCE: Duration = Duration::from_millis(50);

/// One connection, on which requests follow each other.
pub struct Connection(BufReader<UnixStream>);

/// A file to read, as a `stat` of it told.
#[derive(Clone, Debug)]
pub struct Opened {
    pub dir: String,
    pub uri: String,
    pub ino: u64,
    pub version: String,
    pub size: u64,
}

impl Opened {
    /// The request for some of its bytes.
    pub fn range(&self, offset: u64, length: u64) -> Value {
        json!({"dir": self.dir, "uri": self.uri, "ino": self.ino, "version": self.version,
               "offset": offset, "length": length})
    }
}

impl Connection {
    /// Connects to the daemon.
    pub fn to(warmfs: &Warmfs) -> Connection {
        let stream = UnixStream::connect(warmfs.record().unwrap().socket).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Connection(BufReader::new(stream))
    }

    /// Sends a request, and waits for no answer.
    pub fn send(&mut self, target: &str, body: &Value) -> io::Result<()> {
        let body = body.to_string();
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: warmfs\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all(format!("{head}{body}").as_bytes())
    }

    /// The status of an answer, and how long its body is.
    pub fn head(&mut self) -> io::Result<(u16, u64)> {
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once([' ', ':']) {
                _ if line == "\r\n" => return Ok((status, length)),
                Some(("HTTP/1.1", rest)) => status = rest[..3].parse().unwrap(),
                Some(("content-length", rest)) => length = rest.trim().parse().unwrap(),
                _ => {}
            }
        }
    }

    /// Whether an answer comes within the time that one takes which waits for nothing.
    pub fn is_answered(&mut self) -> bool {
        self.0.get_ref().set_read_timeout(Some(AT_ONCE)).unwrap();
        let answered = self.0.fill_buf().is_ok_and(|bytes| !bytes.is_empty());
        self.0.get_ref().set_read_timeout(Some(TIMEOUT)).unwrap();
        answered
    }

    /// Sends a request, and gives the status and the body of its answer.
    pub fn ask(&mut self, target: &str, body: &Value) -> io::Result<(u16, Vec<u8>)> {
        self.send(target, body)?;
        let (status, length) = self.head()?;
        let mut answer = vec![0; length as usize];
        self.0.read_exact(&mut answer)?;
        Ok((status, answer))
    }

    /// The file at a path, or the code of what is wrong with it.
    pub fn open(&mut self, path: &str) -> Result<Opened, String> {
        let (status, body) = self.ask("/v1/stat", &json!({"path": path})).unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        match status {
            200 => Ok(Opened {
                dir: value["dir"].as_str().unwrap().to_owned(),
                uri: value["uri"].as_str().unwrap().to_owned(),
                ino: value["ino"].as_u64().unwrap(),
                version: value["version"].as_str().unwrap_or_default().to_owned(),
                size: value["bytes"].as_u64().unwrap(),
            }),
            _ => Err(value["code"].as_str().unwrap().to_owned()),
        }
    }

    /// Some bytes of a file, or the code of what is wrong with it.
    pub fn read(&mut self, file: &Opened, offset: u64, length: u64) -> Result<Vec<u8>, String> {
        let (status, body) = self.ask("/v1/read", &file.range(offset, length)).unwrap();
        if status == 200 {
            return Ok(body);
        }
        let value: Value = serde_json::from_slice(&body).unwrap();
        Err(value["code"].as_str().unwrap().to_owned())
    }

    /// All bytes of a file, 1 MiB and an odd bit at a time.
    pub fn read_all(&mut self, file: &Opened) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        while (all.len() as u64) < file.size {
            all.extend(self.read(file, all.len() as u64, (1 << 20) + 77)?);
        }
        Ok(all)
    }
}
