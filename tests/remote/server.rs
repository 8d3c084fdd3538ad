//! An S3 server on loopback: moto, in a Python of its own.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::super::{packages, workload::Contents};

/// What moto takes for a signature: objects are not public.
const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, \
                      SignedHeaders=host, Signature=0";

/// The bucket the tests use.
pub const BUCKET: &str = "activations";

pub struct S3 {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl S3 {
    /// A server with an empty bucket; `None` where its packages cannot be fetched. One that
    /// `authenticates` knows no key at all.
    pub fn start(authenticates: bool) -> Option<Self> {
        let python = packages::python("remote")?;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &free.port().to_string()]);
        if authenticates {
            // The first request makes the bucket.
            command.env("INITIAL_NO_AUTH_ACTION_COUNT", "1");
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, address: free.to_string() };
        let began = Instant::now();
        while TcpStream::connect(&server.address).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "moto does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(server.request("PUT", &format!("/{BUCKET}")).0, 200);
        Some(server)
    }

    fn request(&self, method: &str, path: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let address = &self.address;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nAuthorization: {SIGNED}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(end))
    }

    /// Every object below `prefix`, read without the project's client.
    pub fn contents(&self, prefix: &str) -> Contents {
        let object = |key: String| {
            let (status, bytes) = self.request("GET", &format!("/{BUCKET}/{key}"));
            assert_eq!(status, 200, "{key}");
            (PathBuf::from(key.strip_prefix(&format!("{prefix}/")).unwrap()), bytes)
        };
        Contents(self.keys(prefix).into_iter().map(object).collect::<BTreeMap<_, _>>())
    }

    /// The names of all objects below `prefix`.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let (_, list) = self.request("GET", &format!("/{BUCKET}?list-type=2&prefix={prefix}/"));
        let list = String::from_utf8(list).unwrap();
        assert!(list.contains("<IsTruncated>false"), "{list}");
        let keys = list.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap());
        keys.map(str::to_owned).collect()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _it_may_be_gone = self.child.kill();
        let _no_zombie = self.child.wait();
    }
}
