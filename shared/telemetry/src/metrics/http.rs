//! `/metrics` over HTTP, on a Unix socket or a loopback address.
//!
//! Just enough of HTTP/1.1 for those who scrape: GET and HEAD, one request a connection. Every size and every wait is
//! bounded, whoever connects.

use super::{Format, Page, encode};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// Longest that one request may take, from its first byte to the last of its answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests at a time; further connections wait.
const CONNECTIONS: usize = 8;
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the page is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On a Unix socket, whose permissions say who may read.
    Unix(PathBuf),
    /// On a loopback address: whoever is on the machine may read.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens. A socket that nobody answers on is replaced. In a runtime only.
    ///
    /// # Errors
    /// What the kernel says; [`io::ErrorKind::AddrInUse`] if somebody serves it.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let socket = match address {
            Address::Unix(path) => Socket::Unix(bind_unix(path)?),
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Socket::Tcp(TcpListener::from_std(listener)?)
            }
        };
        Ok(Self { socket })
    }

    /// The TCP address it listens on, if it is one.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Serves the page that `make` makes, for ever.
    pub async fn serve<M, F>(self, make: M)
    where
        M: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Page> + Send,
    {
        let make = Arc::new(make);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let make = Arc::clone(&make);
            let accepted = match &self.socket {
                Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        converse(stream, &*make).await;
                        drop(permit);
                    })
                }),
                Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        converse(stream, &*make).await;
                        drop(permit);
                    })
                }),
            };
            if accepted.is_err() {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// One request and its answer; a peer that is slow or gone is left.
async fn converse<S, M, F>(mut stream: S, make: &M)
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Fn() -> F,
    F: Future<Output = Page>,
{
    let exchange = async {
        let answer = match read_head(&mut stream).await? {
            Some(head) => answer(&head, make).await,
            None => error("431 Request Header Fields Too Large", "the request is too long\n"),
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    // Nobody is left to be told.
    drop(tokio::time::timeout(PATIENCE, exchange).await);
}

/// The head of a request up to its empty line; `None` if it is too long.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(piece.get(..count).unwrap_or_default());
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
}

async fn answer<M, F>(head: &str, make: &M) -> String
where
    M: Fn() -> F,
    F: Future<Output = Page>,
{
    let mut lines = head.split("\r\n");
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (request.next().unwrap_or_default(), request.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    if !matches!(method, "GET" | "HEAD") {
        return error("405 Method Not Allowed", "GET /metrics\n");
    }
    if path != "/metrics" {
        return error("404 Not Found", "the metrics are at /metrics\n");
    }
    let accept = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("accept"));
    let format = Format::accepted(accept.map_or("", |(_, value)| value.trim()));
    let body = encode(&make().await, format);
    let shown = if method == "HEAD" { "" } else { body.as_str() };
    response("200 OK", format.content_type(), body.len(), shown)
}

fn error(status: &str, body: &str) -> String {
    response(status, "text/plain; charset=utf-8", body.len(), body)
}

fn response(status: &str, content_type: &str, length: usize, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::super::definition::READY;
    use super::*;

    async fn ask(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let make = || async {
            let mut page = Page::default();
            page.count(&READY, Vec::new(), 1);
            page
        };
        let server = tokio::spawn(async move { converse(server, &make).await });
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        server.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_page_comes_in_the_format_that_was_asked_for() {
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n# TYPE vireo_ready gauge\n# HELP vireo_ready 1 if the host serves all that its configuration says.\nvireo_ready 1\n"), "{answer}");
        let open = "GET /metrics?x=y HTTP/1.1\r\nACCEPT: application/openmetrics-text\r\n\r\n";
        assert!(ask(open).await.ends_with("vireo_ready 1\n# EOF\n"));
    }

    #[tokio::test]
    async fn head_has_no_body_and_others_are_refused() {
        let answer = ask("HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert!(ask("GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        assert!(ask("\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(2 * MAX_HEAD));
        assert!(ask(&long).await.starts_with("HTTP/1.1 431"));
    }
}
