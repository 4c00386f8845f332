//! Object stores for tests: the S3 server that the environment names, a gate before it that can be
//! shut, and a server that forbids everything.
//!
//! Owns: where a test's repository is, and these two little servers. Never: a store of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::Scratch;

/// A bucket of the S3 server that `MAINSTAY_TEST_S3_URL` names.
pub struct S3 {
    pub bucket: String,
    /// `HOST:PORT` of the server.
    pub endpoint: String,
    prefix: String,
    region: String,
}

impl S3 {
    /// The server, or the word that there is none; then the test has nothing to do, unless
    /// `MAINSTAY_REQUIRE_S3` says that it must.
    pub fn of(scratch: &Scratch) -> Option<Self> {
        let Ok(url) = std::env::var("MAINSTAY_TEST_S3_URL") else {
            let required = std::env::var_os("MAINSTAY_REQUIRE_S3").is_some();
            assert!(!required, "MAINSTAY_TEST_S3_URL must name a bucket of an S3 server");
            println!("skipped: set MAINSTAY_TEST_S3_URL and AWS_* to run this test against an S3 server");
            return None;
        };
        let url = url::Url::parse(&url).unwrap();
        let option = |name: &str| url.query_pairs().find(|(n, _)| n == name).map(|(_, v)| v.into_owned());
        let endpoint = option("endpoint").unwrap();
        Some(Self {
            bucket: url.host_str().unwrap().to_owned(),
            endpoint: endpoint.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned(),
            // The name of the scratch directory is this test's alone.
            prefix: format!("{}/{}", url.path().trim_matches('/'), unique(scratch)),
            region: option("region").unwrap_or_else(|| "us-east-1".to_owned()),
        })
    }

    /// A repository in the bucket that no other test uses.
    pub fn url(&self) -> String {
        self.url_in(&self.bucket)
    }

    /// The same in another bucket.
    pub fn url_in(&self, bucket: &str) -> String {
        format!("s3://{bucket}/{}?endpoint=http://{}&region={}", self.prefix, self.endpoint, self.region)
    }

    /// The same through another address.
    pub fn through(&self, address: &str) -> String {
        format!("s3://{}/{}?endpoint=http://{address}&region={}", self.bucket, self.prefix, self.region)
    }

    /// Makes a bucket with an unsigned request. False when the server does not take those.
    pub fn create_bucket(&self, name: &str) -> bool {
        let mut server = TcpStream::connect(&self.endpoint).unwrap();
        let host = &self.endpoint;
        write!(server, "PUT /{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        BufReader::new(server).read_line(&mut answer).unwrap();
        answer.contains(" 200 ")
    }
}

/// The name of the scratch directory, as part of a bucket's or object's name.
pub fn unique(scratch: &Scratch) -> String {
    let name = scratch.path().file_name().unwrap().to_string_lossy();
    name.trim_start_matches('.').to_lowercase()
}

/// The part of a repository's URL that is printed.
pub fn shown(url: &str) -> &str {
    url.split('?').next().unwrap()
}

/// Passes connections on while it is open; shut, it cuts those there are and takes no others.
pub struct Gate {
    pub address: String,
    state: Arc<Mutex<GateState>>,
}

struct GateState {
    open: bool,
    streams: Vec<TcpStream>,
}

impl Gate {
    /// An open gate before `target`. Its threads end with the test's process.
    pub fn before(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(GateState { open: true, streams: Vec::new() }));
        let (shared, target) = (Arc::clone(&state), target.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = shared.lock().unwrap();
                if state.open
                    && let Ok(server) = TcpStream::connect(&target)
                {
                    pass(&client, &server);
                    pass(&server, &client);
                    state.streams.extend([client, server]);
                }
            }
        });
        Self { address, state }
    }

    pub fn shut(&self) {
        let mut state = self.state.lock().unwrap();
        state.open = false;
        for stream in state.streams.drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn open(&self) {
        self.state.lock().unwrap().open = true;
    }
}

fn pass(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Starts an S3 server that answers 403 to everything; returns its address. Its threads end with
/// the test's process.
pub fn forbidding() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || forbid(client));
        }
    });
    address
}

/// Reads one request to its end, refuses it, and hangs up.
fn forbid(mut client: TcpStream) -> Option<()> {
    let mut request = BufReader::new(client.try_clone().ok()?);
    let (mut line, mut length, mut head_only) = (String::new(), 0, false);
    while request.read_line(&mut line).ok()? > 2 {
        head_only |= line.starts_with("HEAD ");
        if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
        line.clear();
    }
    request.read_exact(&mut vec![0; length]).ok()?;
    let body = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    let head = format!("Content-Type: application/xml\r\nContent-Length: {}\r\nConnection: close", body.len());
    write!(client, "HTTP/1.1 403 Forbidden\r\n{head}\r\n\r\n{}", if head_only { "" } else { body }).ok()
}
