//! Who may ask: the names under which this server is meant, and a token where other machines reach it.
//!
//! A page of another site can have its own name resolved to 127.0.0.1 and then read what this server says
//! (DNS rebinding): its requests still carry that name, and are refused.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Result};

/// Headers of every answer: nothing from elsewhere is loaded, shown in a frame, or guessed.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
];

/// What requests are compared with.
#[derive(Clone)]
pub struct Guard {
    address: IpAddr,
    token: Option<String>,
}

impl Guard {
    /// Of a server at an address: others than those of this machine alone get a token.
    pub fn of(address: SocketAddr) -> Result<Guard> {
        let token = (!address.ip().is_loopback()).then(token).transpose()?;
        Ok(Guard { address: address.ip(), token })
    }

    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Why a request is refused.
    fn refusal(&self, headers: &HeaderMap, uri: &Uri) -> Option<(StatusCode, &'static str)> {
        let mut hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or(""));
        let (host, other) = (hosts.next(), hosts.next());
        let named = [host, uri.authority().map(|authority| authority.as_str())];
        if host.is_none()
            || other.is_some()
            || !named.iter().flatten().all(|name| self.is_ours(host_of(name)))
        {
            return Some((StatusCode::MISDIRECTED_REQUEST, "this server has another name\n"));
        }
        let given = parameter(uri, "token").unwrap_or("");
        match &self.token {
            Some(token) if !same(token, given) => {
                Some((StatusCode::FORBIDDEN, "open the URL with its token, as denoir printed it\n"))
            }
            _ => None,
        }
    }

    /// Whether a host name, without a port, is one of this server. Ports may differ behind `ssh -L`.
    fn is_ours(&self, host: &str) -> bool {
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        match ip {
            Some(ip) if ip.is_loopback() => true,
            // Of all addresses of this machine, which have the token for a guard.
            Some(ip) => ip == self.address || self.address.is_unspecified(),
            None => host.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// `localhost` of `localhost:8000`, `[::1]` of `[::1]:8000`.
fn host_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// 128 random bits.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| {
        Error::new("the system gives no random numbers for a token").hint("serve on 127.0.0.1").caused_by(e)
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Compares without telling by its time how much is right.
fn same(token: &str, given: &str) -> bool {
    token.len() == given.len() && token.bytes().zip(given.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// A parameter of a query, as it stands there.
pub fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let all = uri.query()?.split('&').filter_map(|part| part.split_once('='));
    all.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// Refuses what is not meant for this server, and adds the headers.
pub async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.refusal(request.headers(), request.uri()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_server_are_answered() {
        let at = |address: &str| Guard::of(address.parse().unwrap()).unwrap();
        let refused = |guard: &Guard, hosts: &[&'static str], uri: &str| {
            let hosts = hosts.iter().map(|host| (header::HOST, HeaderValue::from_static(host)));
            guard.refusal(&hosts.collect(), &uri.parse().unwrap()).map(|(status, _)| status.as_u16())
        };
        let local = at("127.0.0.1:6174");
        for host in ["127.0.0.1:6174", "localhost", "LocalHost:9000", "[::1]:6174", "127.0.0.1"] {
            assert_eq!(refused(&local, &[host], "/"), None, "{host}");
        }
        for host in
            ["evil.com", "evil.com:6174", "localhost.evil.com", "10.0.0.1:6174", "", "127.0.0.1.evil.com"]
        {
            assert_eq!(refused(&local, &[host], "/"), Some(421), "{host}");
        }
        assert_eq!(refused(&local, &[], "/"), Some(421));
        assert_eq!(refused(&local, &["localhost", "evil.com"], "/"), Some(421));
        assert_eq!(refused(&local, &["localhost"], "http://evil.com/"), Some(421));
        for open in [at("192.0.2.7:80"), at("0.0.0.0:80")] {
            let token = open.token().unwrap().to_owned();
            let mut wrong = token.clone();
            wrong.replace_range(31.., if token.ends_with('0') { "1" } else { "0" });
            assert_eq!(refused(&open, &["192.0.2.7"], &format!("/?token={token}")), None);
            assert_eq!(refused(&open, &["localhost"], &format!("/events?a=b&token={token}")), None);
            for uri in [
                "/".to_owned(),
                "/?token=".to_owned(),
                format!("/?token={wrong}"),
                format!("/?token={token}0"),
            ] {
                assert_eq!(refused(&open, &["192.0.2.7"], &uri), Some(403), "{uri}");
            }
            assert_eq!(refused(&open, &["evil.com"], &format!("/?token={token}")), Some(421));
        }
        assert_ne!(at("0.0.0.0:80").token(), at("0.0.0.0:80").token());
    }
}
