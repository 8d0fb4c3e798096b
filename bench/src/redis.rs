//! A Redis server of one's own, and a client for the few commands that are needed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::server::variable;

/// It ends with the program, whatever ends that.
pub struct Server {
    process: Child,
    socket: PathBuf,
    files: PathBuf,
}

impl Server {
    /// `fsync` is "everysec" or "always".
    pub fn start(fsync: &str) -> Result<Self> {
        let files = Path::new(&variable("PGC_BENCH_OUT")?).join(format!("redis-{fsync}"));
        let _ = fs::remove_dir_all(&files);
        fs::create_dir_all(&files)?;
        // Not beside the files: the kernel cuts the path of a socket at 107 bytes.
        let socket = std::env::temp_dir().join(format!("pgc-redis-{fsync}-{}", process::id()));
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", fsync])
            .arg("--dir")
            .arg(&files)
            .arg("--unixsocket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let server = Self { process, socket, files };
        let begin = Instant::now();
        while let Err(error) = server.connect() {
            if begin.elapsed() > Duration::from_secs(10) {
                return Err(format!("redis-server does not start: {error}").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    pub fn connect(&self) -> Result<Connection> {
        let stream = UnixStream::connect(&self.socket)?;
        Ok(Connection { out: Vec::new(), input: BufReader::new(stream) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_dir_all(&self.files);
    }
}

pub enum Reply {
    Text(String),
    List(Vec<Reply>),
}

impl Reply {
    /// The content of each entry of a stream that has one field.
    pub fn contents(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::List(entries) => entries.iter().filter_map(Self::last_text).collect(),
        }
    }

    fn last_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::List(parts) => parts.last()?.last_text(),
        }
    }
}

pub struct Connection {
    out: Vec<u8>,
    input: BufReader<UnixStream>,
}

impl Connection {
    pub fn call(&mut self, words: &[&str]) -> Result<Reply> {
        self.out.clear();
        write!(self.out, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.out, "${}\r\n{word}\r\n", word.len())?;
        }
        self.input.get_mut().write_all(&self.out)?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.input.read_line(&mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or("Redis has closed the connection")?;
        match kind {
            "$" => {
                let length: usize = rest.parse()?;
                let mut text = vec![0; length + 2];
                self.input.read_exact(&mut text)?;
                text.truncate(length);
                Ok(Reply::Text(String::from_utf8(text)?))
            }
            "*" => {
                let length: usize = rest.parse()?;
                Ok(Reply::List((0..length).map(|_| self.reply()).collect::<Result<_>>()?))
            }
            "-" => Err(format!("Redis says: {rest}").into()),
            _ => Ok(Reply::Text(rest.into())),
        }
    }
}
