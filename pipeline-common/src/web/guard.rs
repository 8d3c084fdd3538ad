//! Who is let in: the token, the host, and what every answer's headers say.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use super::answer::{Answer, Refusal};

/// Headers of every answer; scripts and styles come from this server alone.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Adds them; what does not say otherwise is not kept.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// What a request must show.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    /// Without one everybody on this machine is let in.
    token: Option<String>,
    /// Names of this machine, beside addresses.
    names: Vec<String>,
}

impl Guard {
    /// With the token and the names that this machine goes by.
    pub fn new(token: Option<String>, mut names: Vec<String>) -> Self {
        names.push("localhost".to_owned());
        Self { token, names }
    }

    /// Whether a request may go on; then the cookie to set, if it brought the token in its address.
    pub fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Answer<Option<HeaderValue>> {
        self.check_host(uri, headers)?;
        let Some(token) = &self.token else { return Ok(None) };
        let in_query = query_value(uri, "token").is_some_and(|given| same(&given, token));
        let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let bearer = bearer.and_then(|text| text.split_once(' '));
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let in_header = bearer.is_some_and(|(_, given)| same(given.trim(), token));
        let name = cookie_name(token);
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
        let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|c| c.split_once('='));
        let in_cookie = pairs.any(|(key, given)| key.trim() == name && same(given.trim(), token));
        if in_query {
            // Lax, so that a link from elsewhere opens: nothing is changed by a GET.
            let cookie = format!("{name}={token}; HttpOnly; SameSite=Lax; Path=/");
            return Ok(HeaderValue::from_str(&cookie).ok());
        }
        if in_header || in_cookie {
            return Ok(None);
        }
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "no token, or a wrong one")
            .hint("open the address that 05_explore has printed, with ?token= at its end"))
    }

    /// Refuses names that another site's DNS may point here: a page of that site could otherwise
    /// read answers as its own.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Answer<()> {
        let given = headers.get(header::HOST).and_then(|v| v.to_str().ok());
        let host = uri.host().or(given).unwrap_or_default();
        let name = without_port(host);
        let known = name.parse::<IpAddr>().is_ok()
            || self.names.iter().any(|n| n.eq_ignore_ascii_case(name));
        if known {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this server does not answer to that name",
        )
        .hint("use 127.0.0.1, localhost, or this machine's own name or address"))
    }
}

/// Cookies are shared by all ports of a host: servers beside each other have different names.
fn cookie_name(token: &str) -> String {
    format!("explore_{}", &blake3::hash(token.as_bytes()).to_hex()[..8])
}

/// `host:port`, `[v6]:port` or either without a port; brackets go.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(address, _)| address);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// A parameter's value; a token has nothing that is escaped.
fn query_value(uri: &Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next_back()
}

/// Compares digests of both, so that time tells nothing about where they differ.
fn same(given: &str, token: &str) -> bool {
    blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, pairs: &[(&'static str, &str)]) -> (Uri, HeaderMap) {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("localhost:8757"));
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        (uri.parse().unwrap(), headers)
    }

    fn status(guard: &Guard, uri: &str, pairs: &[(&'static str, &str)]) -> u16 {
        let (uri, headers) = request(uri, pairs);
        guard.admit(&uri, &headers).map_or_else(|refusal| refusal.status.as_u16(), |_| 200)
    }

    #[test]
    fn the_token_is_taken_from_address_header_and_cookie_and_nothing_else() {
        let guard = Guard::new(Some("abc123".into()), vec!["node7".into()]);
        let (uri, headers) = request("/?x=1&token=abc123", &[]);
        let cookie = guard.admit(&uri, &headers).unwrap().unwrap();
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
        let pair = cookie.split(';').next().unwrap();
        assert_eq!(status(&guard, "/", &[("cookie", &format!("a=b; {pair}"))]), 200);
        assert_eq!(status(&guard, "/api/saes", &[("authorization", "bearer abc123")]), 200);
        for (uri, pairs) in [
            ("/", vec![]),
            ("/?token=", vec![]),
            ("/?token=abc124", vec![]),
            ("/?token=abc1234", vec![]),
            ("/?Token=abc123", vec![]),
            ("/", vec![("authorization", "abc123")]),
            ("/", vec![("authorization", "Basic abc123")]),
            ("/", vec![("cookie", "explore=abc123")]),
            ("/?token=abc123&token=wrong", vec![]),
        ] {
            assert_eq!(status(&guard, uri, &pairs), 401, "{uri} {pairs:?}");
        }
    }

    #[test]
    fn names_that_anybody_may_point_here_are_refused() {
        let guard = Guard::new(None, vec!["Node7".into()]);
        for good in ["127.0.0.1", "localhost:1", "[::1]:80", "10.0.0.7:8757", "node7:8757"] {
            assert_eq!(status(&guard, "/", &[("host", good)]), 200, "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example:8757", "", "[", "127.0.0.1.nip.io"] {
            assert_eq!(status(&guard, "/", &[("host", bad)]), 421, "{bad}");
        }
        assert_eq!(status(&guard, "http://evil.example/", &[]), 421);
    }
}
