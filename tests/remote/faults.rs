//! A connection that fails: it stands between client and server and spoils chosen requests.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What may happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The server answers 500.
    Error,
    /// It answers 503 with S3's code for too many requests.
    SlowDown,
    /// Nothing comes back until the client has given up.
    Hang,
    /// The connection drops in the middle of the request's body.
    DropBody,
    /// The server gets the request; its answer is lost.
    LoseAnswer,
    /// The connection drops in the middle of the answer's body.
    CutAnswer,
}

/// Decides about a request by its method, its path, and how many requests of the method came before.
pub type Plan = fn(&str, &str, usize) -> Option<Fault>;

pub struct Faulty {
    pub address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    requests: BTreeMap<String, usize>,
    injected: BTreeMap<Fault, usize>,
}

impl Faulty {
    /// Listens for the rest of the test.
    pub fn start(upstream: &str, plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let (upstream, shared) = (upstream.to_owned(), state.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (upstream, shared) = (upstream.clone(), shared.clone());
                // A client that is killed leaves its connection; that is no failure of the test.
                std::thread::spawn(move || serve(client, &upstream, plan, &shared).ok());
            }
        });
        Self { address, state }
    }

    /// How often each fault was injected.
    pub fn injected(&self) -> BTreeMap<Fault, usize> {
        self.state.lock().unwrap().injected.clone()
    }
}

/// One request per connection.
fn serve(
    mut client: TcpStream,
    upstream: &str,
    plan: Plan,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let head = read_head(&mut client)?;
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let length: usize = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    let fault = {
        let mut state = state.lock().unwrap();
        let before = state.requests.entry(method.to_owned()).or_default();
        let fault = plan(method, path, *before);
        *before += 1;
        if let Some(fault) = fault {
            *state.injected.entry(fault).or_default() += 1;
        }
        fault
    };
    let mut body = vec![0; if fault == Some(Fault::DropBody) { length / 2 } else { length }];
    client.read_exact(&mut body)?;
    match fault {
        Some(Fault::DropBody) => return Ok(()),
        Some(Fault::Error) => {
            return answer(&mut client, "500 Internal Server Error", "InternalError");
        }
        Some(Fault::SlowDown) => return answer(&mut client, "503 Slow Down", "SlowDown"),
        Some(Fault::Hang) => {
            std::thread::sleep(Duration::from_secs(20));
            return Ok(());
        }
        _ => {}
    }
    let mut server = TcpStream::connect(upstream)?;
    let (first, rest) = text.split_once("\r\n").unwrap();
    write!(server, "{first}\r\nConnection: close\r\n{rest}")?;
    server.write_all(&body)?;
    let mut found = vec![];
    server.read_to_end(&mut found)?;
    match fault {
        Some(Fault::LoseAnswer) => Ok(()),
        Some(Fault::CutAnswer) => client.write_all(&found[..found.len() - found.len() / 4]),
        _ => client.write_all(&found),
    }
}

fn read_head(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

fn answer(client: &mut TcpStream, status: &str, code: &str) -> std::io::Result<()> {
    let body = format!("<Error><Code>{code}</Code><Message>injected</Message></Error>");
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
