//! HTTPS requests: the system's certificates and proxies, time limits, and which failures are worth
//! another attempt.

use std::io::Read;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use url::{Host, Url};

use super::error::PullError;
use super::progress::{Event, Progress};
use super::reference::shown;

/// How often and how patiently a failed request is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts without a byte of progress before giving up; at least 1.
    pub attempts: u32,
    /// Pause before the second attempt; each further pause is twice as long.
    pub first_pause: Duration,
    /// The longest pause, also when a server asks for more.
    pub longest_pause: Duration,
    /// How long a connection may be silent before it counts as broken.
    pub silence: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            silence: Duration::from_secs(30),
        }
    }
}

/// An HTTP client for listings and files.
pub(super) struct Client {
    /// For `https` URLs: never follows a redirect to plain `http`.
    secure: Agent,
    /// For `http` URLs, which only a person or a configured endpoint can ask for.
    plain: Agent,
    /// The same, past any proxy.
    local: Agent,
    retry: Retry,
}

/// Listings are read into memory: the largest known ones have a few megabytes.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// One attempt's failure.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may succeed.
    Passing {
        reason: String,
        /// The pause that the server asked for.
        pause: Option<Duration>,
    },
    /// Another attempt would fail in the same way.
    Lasting(PullError),
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::Lasting(error)
    }
}

impl Client {
    pub(super) fn new(retry: Retry) -> Self {
        let config = || {
            Agent::config_builder()
                .user_agent(concat!("metal-marlin/", env!("CARGO_PKG_VERSION")))
                .http_status_as_error(false)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .timeout_resolve(Some(Duration::from_secs(15)))
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .timeout_per_read(Some(retry.silence))
        };
        Self {
            secure: config().https_only(true).tls_config(tls()).build().into(),
            plain: config().tls_config(tls()).build().into(),
            local: config().proxy(None).build().into(),
            retry,
        }
    }

    /// One GET request. Any status that is not an answer to build on is a [`Failure`]; success, 206
    /// (part of a file) and 416 (nothing left of it) are returned.
    pub(super) fn get(
        &self,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response<ureq::Body>, Failure> {
        let mut request = self.agent_for(url).get(url.as_str());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.call().map_err(|error| classify(url, error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let meaning = status.canonical_reason().unwrap_or("(no standard meaning)").to_owned();
        if status.is_server_error()
            || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status)
        {
            let pause = response.headers().get(header::RETRY_AFTER);
            let pause = pause
                .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                .map(Duration::from_secs);
            return Err(Failure::Passing {
                reason: format!("the server answered {} {meaning}", status.as_u16()),
                pause,
            });
        }
        Err(PullError::Status { url: shown(url), status: status.as_u16(), meaning }.into())
    }

    /// Fetches a JSON document, with further attempts as configured.
    pub(super) fn get_json<T: DeserializeOwned>(
        &self,
        url: &Url,
        headers: &HeaderMap,
        progress: &dyn Progress,
    ) -> Result<T, PullError> {
        let mut attempts = Attempts::new(&self.retry);
        loop {
            let failure = match self.get(url, headers) {
                Ok(mut response) => match read_limited(response.body_mut().as_reader()) {
                    Ok(bytes) if bytes.len() as u64 > MAX_JSON_BYTES => {
                        return Err(PullError::BadAnswer {
                            url: shown(url),
                            reason: format!("the listing has more than {MAX_JSON_BYTES} bytes"),
                        });
                    }
                    Ok(bytes) => {
                        return serde_json::from_slice(&bytes).map_err(|error| {
                            PullError::BadAnswer {
                                url: shown(url),
                                reason: format!("expected a JSON listing: {error}"),
                            }
                        });
                    }
                    Err(error) => classify(url, error.into()),
                },
                Err(failure) => failure,
            };
            attempts.pause(url, failure, progress)?;
        }
    }

    pub(super) fn retry(&self) -> &Retry {
        &self.retry
    }

    fn agent_for(&self, url: &Url) -> &Agent {
        if url.scheme() == "https" {
            return &self.secure;
        }
        if is_this_machine(url) { &self.local } else { &self.plain }
    }
}

/// Whether the server is on this machine.
pub(super) fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Counts attempts and waits between them.
pub(super) struct Attempts<'a> {
    retry: &'a Retry,
    made: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(retry: &'a Retry) -> Self {
        Self { retry, made: 0 }
    }

    /// Bytes arrived: the attempts counted so far no longer matter.
    pub(super) fn progressed(&mut self) {
        self.made = 0;
    }

    /// Waits before the next attempt, or says why there is none.
    pub(super) fn pause(
        &mut self,
        url: &Url,
        failure: Failure,
        progress: &dyn Progress,
    ) -> Result<(), PullError> {
        let (reason, asked) = match failure {
            Failure::Lasting(error) => return Err(error),
            Failure::Passing { reason, pause } => (reason, pause),
        };
        self.made += 1;
        if self.made >= self.retry.attempts {
            return Err(PullError::Connection { url: shown(url), reason, attempts: self.made });
        }
        let doubled = self.retry.first_pause.saturating_mul(1 << (self.made - 1).min(16));
        let after = asked.unwrap_or(Duration::ZERO).max(doubled).min(self.retry.longest_pause);
        progress.event(Event::Retrying { reason: &reason, attempt: self.made + 1, after });
        let mut left = after;
        while !left.is_zero() && !progress.cancelled() {
            let step = left.min(Duration::from_millis(50));
            std::thread::sleep(step);
            left -= step;
        }
        if progress.cancelled() { Err(PullError::Cancelled) } else { Ok(()) }
    }
}

/// Sorts an error of a request, or of reading its answer, by whether another attempt may help.
pub(super) fn classify(url: &Url, error: ureq::Error) -> Failure {
    use std::io::ErrorKind;
    use ureq::Error;
    let reason = match error {
        Error::Io(ref io) => match io.kind() {
            // rustls reports what it thinks of the certificate in this way.
            ErrorKind::InvalidData => {
                return PullError::Request { url: shown(url), reason: io.to_string() }.into();
            }
            ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
            ErrorKind::UnexpectedEof => "the connection ended early".to_owned(),
            _ => io.to_string(),
        },
        Error::HostNotFound => "the server's name was not found; is there a network?".to_owned(),
        Error::Timeout(_) => "the server was silent for too long".to_owned(),
        Error::Protocol(ref error) => format!("the connection ended early or was garbled: {error}"),
        Error::ConnectionFailed => "no connection".to_owned(),
        Error::ConnectProxyFailed(ref reason) => {
            let reason = format!("the proxy refused the connection: {reason}");
            return PullError::Request { url: shown(url), reason }.into();
        }
        Error::RequireHttpsOnly(_) => {
            let reason = "redirected from https to http, which is refused".to_owned();
            return PullError::Request { url: shown(url), reason }.into();
        }
        other => return PullError::Request { url: shown(url), reason: other.to_string() }.into(),
    };
    Failure::Passing { reason, pause: None }
}

fn read_limited(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(not(target_vendor = "apple"))]
fn tls() -> TlsConfig {
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .build()
}

#[cfg(target_vendor = "apple")]
fn tls() -> TlsConfig {
    TlsConfig::builder()
        .provider(TlsProvider::NativeTls)
        .root_certs(RootCerts::PlatformVerifier)
        .build()
}
