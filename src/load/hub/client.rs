//! Our own client of the Hub, over `ureq`: GET with a bearer token, redirects followed by hand, bodies in blocks, so
//! that a download can be stopped within a file, and a broken connection is taken up where it ended.
//!
//! Redirects are followed here because large files live on other hosts, and the token must not go there: it is sent only where
//! scheme, host and port are those of the endpoint.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use ureq::http::{HeaderValue, Response, Uri, header};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, Proxy};

use super::cache::Partial;
use super::{Download, Meter, RepoId, Revision, Sibling, Watch, encode};
use crate::error::{Error, ErrorKind, Result};

/// What is read between two looks at the cancel flag.
pub const BLOCK: usize = 64 << 10;

const CONNECT: Duration = Duration::from_secs(10);
const READ: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;

/// The listing of a repository with ten thousand files has about 3 MB.
const MAX_LISTING: u64 = 64 << 20;

/// A connection that breaks is taken up again so often in one file.
const MAX_RESUMES: usize = 10;

/// A connection to one endpoint.
pub struct Client {
    agent: Agent,
    /// What every path is put behind.
    base: String,
    endpoint: Uri,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// Opens nothing yet. With an `https` endpoint every hop must be `https` too, and a proxy is used if the environment names one
    /// (`ureq` reads it).
    ///
    /// # Errors
    /// `InvalidArgument` for a token that is no header value; the message does not repeat it.
    pub fn new(endpoint: &str, token: Option<&str>) -> Result<Self> {
        let (base, endpoint) = (endpoint.to_string(), uri(endpoint)?);
        let secure = endpoint.scheme_str() == Some("https");
        let agent = Agent::config_builder()
            .user_agent(concat!("metal-candle/", env!("CARGO_PKG_VERSION")))
            .https_only(secure)
            .proxy(if secure { Proxy::try_from_env() } else { None })
            .tls_config(tls())
            // Sizes and ranges are those of the files, whatever hf-hub makes of the features of `ureq`.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(READ))
            .timeout_per_write(Some(READ))
            .build()
            .new_agent();
        Ok(Self { agent, base, endpoint, authorization: token.map(bearer).transpose()? })
    }

    /// The body of `url` from byte `from` on.
    ///
    /// # Errors
    /// `NotFound` for 404, `Network` for every other failure.
    fn get(&self, url: &str, from: u64) -> Result<Body> {
        let mut url = uri(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url, from)?;
            match response.status().as_u16() {
                206 if from > 0 && starts_at(&response, from) => return Ok(response.into_body()),
                200 if from == 0 => return Ok(response.into_body()),
                200 | 206 => return Err(network(format!("expected the part from byte {from} on, found another"))),
                301 | 302 | 303 | 307 | 308 => url = redirected(&url, &response)?,
                status => return Err(refused(status)),
            }
        }
        Err(network(format!("expected at most {MAX_REDIRECTS} redirects, found more")))
    }

    fn send(&self, url: &Uri, from: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(authorization) = self.authorization.as_ref().filter(|_| same_origin(url, &self.endpoint)) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|e| network(format!("no connection to {}: {e}", url.host().unwrap_or_default())).with_source(e))
    }
}

impl Download for Client {
    fn listing(&self, repo: &RepoId, revision: &Revision, watch: &mut dyn Watch) -> Result<Vec<u8>> {
        // `blobs` adds sizes and hashes.
        let url = format!("{}/api/models/{}/revision/{}?blobs=true", self.base, repo.as_str(), encode(revision.as_str()));
        read_listing(self.get(&url, 0)?, watch)
    }

    /// A broken connection leaves the part of a file whose hash will tell whether it is good.
    fn file(&self, repo: &RepoId, commit: &str, file: &Sibling, blob: &Path, meter: &mut Meter<'_>) -> Result<()> {
        let name = file.rfilename.split('/').map(encode).collect::<Vec<_>>().join("/");
        let url = format!("{}/{}/resolve/{commit}/{name}", self.base, repo.as_str());
        let mut partial = Partial::open(blob)?;
        match self.complete(&url, file, &mut partial, meter) {
            Ok(()) => partial.keep(blob),
            Err(e) => {
                if e.kind() != ErrorKind::Network || file.sha256().is_none() || partial.len() > file.size() {
                    partial.discard();
                }
                Err(e)
            }
        }
    }
}

impl Client {
    fn complete(&self, url: &str, file: &Sibling, partial: &mut Partial, meter: &mut Meter<'_>) -> Result<()> {
        if file.sha256().is_some() {
            partial.resume(&mut |len| meter.at(len))?;
        }
        if partial.len() > file.size() || file.sha256().is_none() {
            partial.clear()?;
        }
        loop {
            let resumed = partial.len();
            self.receive(url, file, partial, meter)?;
            let checked = partial.check(file.size(), file.sha256());
            if checked.is_ok() {
                return checked;
            }
            partial.clear()?;
            // What was left behind may have been bad; what came in one piece is not asked for twice.
            if resumed == 0 {
                return checked;
            }
        }
    }

    /// The bytes that are missing. A connection that breaks is taken up where it ended, as long as each try brings something.
    fn receive(&self, url: &str, file: &Sibling, partial: &mut Partial, meter: &mut Meter<'_>) -> Result<()> {
        let mut resumes = 0;
        while partial.len() < file.size() {
            let before = partial.len();
            let part = self.get(url, before).and_then(|body| {
                // One byte more than expected tells a file that is too long.
                each_block(body, file.size() - before + 1, &mut |block| {
                    partial.write(block)?;
                    meter.at(partial.len())
                })
            });
            let short = || network(format!("expected {} bytes, found {}", file.size(), partial.len()));
            match part {
                Ok(()) if partial.len() > file.size() => return partial.check(file.size(), None),
                Ok(()) if partial.len() == file.size() => {}
                _ if partial.len() > before && resumes < MAX_RESUMES && is_network(&part) => {
                    log::debug!("{}: connection lost at byte {}, taken up again", file.rfilename, partial.len());
                    resumes += 1;
                }
                Ok(()) => return Err(short()),
                Err(e) if e.kind() == ErrorKind::Network && partial.len() > 0 => return Err(short().with_source(e)),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Whether a part ended because the connection did.
fn is_network(part: &Result<()>) -> bool {
    part.as_ref().err().is_none_or(|e| e.kind() == ErrorKind::Network)
}

/// The text of a listing.
pub fn read_listing(body: Body, watch: &mut dyn Watch) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    each_block(body, MAX_LISTING, &mut |block| {
        text.extend_from_slice(block);
        watch.check()
    })?;
    Ok(text)
}

/// Hands a body over in blocks, at most `max` bytes of it.
///
/// # Errors
/// `Network` if the connection fails, and what `on_block` returns.
fn each_block(body: Body, max: u64, on_block: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut reader = body.into_reader().take(max);
    let mut block = vec![0; BLOCK];
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(n) => on_block(&block[..n])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(network(format!("connection lost: {e}")).with_source(e)),
        }
    }
}

/// A failed download.
pub fn network(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Network, message)
}

fn tls() -> TlsConfig {
    if cfg!(target_vendor = "apple") {
        TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build()
    } else {
        TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(RootCerts::WebPki).build()
    }
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let value = Some(token).filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
    let mut value = value
        .and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok())
        .ok_or_else(|| Error::argument("hub_token: expected printable ASCII without spaces, found something else"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn uri(url: &str) -> Result<Uri> {
    url.parse().map_err(|e| network(format!("{url:?}: not a URL: {e}")).with_source(e))
}

/// Where a redirect leads: to a URL, or to a path on the same host.
fn redirected(from: &Uri, response: &Response<Body>) -> Result<Uri> {
    let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| network("redirect: expected a location, found none"))?;
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let target = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_string()
    };
    // The target is not repeated in the error: the signature in it is as good as a token.
    let target = target.parse::<Uri>().ok().filter(|target| matches!(target.scheme_str(), Some("http" | "https")));
    target.ok_or_else(|| network("redirect: expected an http or https URL or a path, found another location"))
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |url: &Uri| url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |url: &Uri| url.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Whether a partial answer begins where it was asked to.
fn starts_at(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

pub fn refused(status: u16) -> Error {
    let error = match status {
        404 => Error::new(ErrorKind::NotFound, "no such repository, revision or file on the Hub"),
        401 | 403 => {
            let message = format!(
                "access refused ({status}): no such repository, or it is private or gated and needs a token (hub_token) of an \
                 account that may read it and has accepted its licence"
            );
            // 401 is the Hub's answer for a repository that does not exist as well, lest it tell which private ones do.
            Error::new(if status == 401 { ErrorKind::NotFound } else { ErrorKind::Network }, message)
        }
        429 => network("too many requests (429): try later, or with a token (hub_token)"),
        _ => network(format!("expected status 200, found {status}")),
    };
    error.with_source(ureq::Error::StatusCode(status))
}
