//! A server under test, and HTTP by hand.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stage 05, running.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub token: String,
    said: Option<std::thread::JoinHandle<String>>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Server {
    /// Starts it at a free port and waits until it listens.
    pub fn start(command: &mut Command) -> Self {
        command.env("EXPLORE_PORT", "0").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let said = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(rest) = line.trim().strip_prefix("http://") else {
            panic!("it does not listen: {line} {}", said.join().unwrap());
        };
        let (address, query) = rest.split_once('/').unwrap();
        let token = query.strip_prefix("?token=").unwrap_or_default().to_owned();
        Self { child, address: address.parse().unwrap(), token, said: Some(said) }
    }

    /// The page's address, with the token.
    pub fn page(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes as they are and reads the answer.
    pub fn raw(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read(&mut BufReader::new(stream))
    }

    /// The head of a request, with the token.
    pub fn head(&self, method: &str, address: &str) -> String {
        let Self { address: host, token, .. } = self;
        format!("{method} {address} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n")
    }

    pub fn get(&self, address: &str) -> Answer {
        self.raw(&format!("{}connection: close\r\n\r\n", self.head("GET", address)))
    }

    /// A request with a body, not yet sent.
    pub fn request(&self, address: &str, body: &str) -> String {
        let (head, length) = (self.head("POST", address), body.len());
        format!(
            "{head}content-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }

    pub fn post(&self, address: &str, body: &Value) -> Answer {
        self.raw(&self.request(address, &body.to_string()))
    }

    /// All lines of a generation.
    pub fn events(&self, body: &Value) -> Vec<Value> {
        let answer = self.post("/api/generate", body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the sentences of an SAE can be searched.
    pub fn indexed(&self, sae: &str) {
        let until = Instant::now() + PATIENCE;
        while self.get(&format!("/api/search?q=x&sae={sae}")).json()["indexing"] != json!([]) {
            assert!(Instant::now() < until, "no index");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to stop; its exit code and all that it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        self.stop()
    }

    fn stop(&mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(asked.success(), "it has ended before");
        let status = self.child.wait().unwrap();
        (status.code(), self.said.take().unwrap().join().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.said.is_none() {
            return;
        }
        let (code, said) = self.stop();
        if !std::thread::panicking() {
            assert_eq!(code, Some(0), "{said}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
}

/// Reads the head of an answer: status and headers, in lower case.
pub fn read_head(stream: &mut impl BufRead) -> Option<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let status = line.split_whitespace().nth(1)?.parse().ok()?;
    let mut headers = vec![];
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    Some((status, headers))
}

/// Reads a chunk of a body in chunks; the last is empty.
pub fn read_chunk(stream: &mut impl BufRead) -> Vec<u8> {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let length = usize::from_str_radix(line.trim(), 16).unwrap();
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk).unwrap();
    chunk.truncate(length);
    chunk
}

/// Reads a whole answer.
pub fn read(stream: &mut impl BufRead) -> Answer {
    let (status, headers) = read_head(stream).unwrap();
    let mut answer = Answer { status, headers, body: vec![] };
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let chunk = read_chunk(stream);
            if chunk.is_empty() {
                break;
            }
            answer.body.extend(chunk);
        }
    } else {
        let length = answer.header("content-length").map_or(0, |n| n.parse().unwrap());
        answer.body.resize(length, 0);
        stream.read_exact(&mut answer.body).unwrap();
    }
    answer
}
