//! A small HTTP/1.1 server that serves a table of files, and misbehaves when asked to.

// Each test program uses what it needs.
#![allow(dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the server does with a path.
#[derive(Clone, Default)]
pub struct Page {
    pub body: Vec<u8>,
    /// Instead of 200 or 206.
    pub status: Option<u16>,
    pub headers: Vec<(String, String)>,
    /// Entity tag; requests with another `If-Range` get the whole file.
    pub etag: Option<String>,
    /// Whether `Range` is ignored.
    pub no_ranges: bool,
    /// Cut the connection after so many bytes of the body; one entry per request, then no more.
    pub cuts: Vec<usize>,
    /// Answer so many requests with 503 first.
    pub failures: usize,
    /// Do not say how long the body is; it ends with the connection.
    pub no_length: bool,
}

impl Page {
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    pub fn redirect(to: &str) -> Self {
        Self { status: Some(302), headers: vec![("Location".into(), to.into())], ..Self::default() }
    }

    pub fn status(status: u16) -> Self {
        Self { status: Some(status), ..Self::default() }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Default)]
struct State {
    pages: HashMap<String, Page>,
    requests: Vec<Request>,
}

/// Listens on a port of this machine until the process ends.
pub struct Server {
    pub base: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("the port"));
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that goes away mid-answer is part of the tests.
                std::thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Self { base, state }
    }

    /// Serves `page` at `path`, which includes the query if there is one.
    pub fn put(&self, path: &str, page: Page) -> String {
        self.state.lock().unwrap().pages.insert(path.to_owned(), page);
        format!("{}{path}", self.base)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The `Range` headers of the requests for `path`, in order.
    pub fn ranges(&self, path: &str) -> Vec<Option<String>> {
        let requests = self.requests().into_iter().filter(|request| request.path == path);
        requests.map(|request| request.header("range").map(str::to_owned)).collect()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => {
                    headers.insert(name.to_ascii_lowercase(), value.trim().to_owned())
                }
                None => break,
            };
        }
        let request = Request { path: path.clone(), headers };
        let (page, cut, fails) = {
            let mut state = state.lock().unwrap();
            state.requests.push(request.clone());
            let page = state.pages.entry(path).or_insert_with(|| Page::status(404));
            let cut = (!page.cuts.is_empty() && page.failures == 0).then(|| page.cuts.remove(0));
            let fails = page.failures > 0;
            page.failures = page.failures.saturating_sub(1);
            (page.clone(), cut, fails)
        };
        if !answer(&mut stream, &request, &page, cut, fails)? {
            return Ok(());
        }
    }
}

/// Returns whether the connection goes on.
fn answer(
    stream: &mut TcpStream,
    request: &Request,
    page: &Page,
    cut: Option<usize>,
    fails: bool,
) -> std::io::Result<bool> {
    if fails {
        stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    }
    let same_version =
        request.header("if-range").is_none_or(|tag| page.etag.as_deref() == Some(tag));
    let first = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
        .filter(|_| same_version && !page.no_ranges && page.status.is_none());
    let total = page.body.len();
    let (status, body) = match (page.status, first) {
        (Some(status), _) => (status, &page.body[..]),
        (None, Some(first)) if first >= total => (416, &[][..]),
        (None, Some(first)) => (206, &page.body[first..]),
        (None, None) => (200, &page.body[..]),
    };
    let mut head = format!("HTTP/1.1 {status} Answer\r\n");
    if !page.no_length {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    match (status, first) {
        (206, Some(first)) => {
            head += &format!("Content-Range: bytes {first}-{}/{total}\r\n", total - 1)
        }
        (416, _) => head += &format!("Content-Range: bytes */{total}\r\n"),
        _ => {}
    }
    for (name, value) in &page.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(tag) = &page.etag {
        head += &format!("ETag: {tag}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    let sent = cut.unwrap_or(body.len()).min(body.len());
    stream.write_all(&body[..sent])?;
    stream.flush()?;
    Ok(sent == body.len() && !page.no_length)
}

/// `length` bytes that begin like a GGUF file and never repeat for long.
pub fn model_bytes(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = b"GGUF".to_vec();
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
