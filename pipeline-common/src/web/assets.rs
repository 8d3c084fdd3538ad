//! The files that the page is made of, embedded.

use std::sync::OnceLock;

/// Name, media type and contents.
type Asset = (&'static str, &'static str, &'static [u8]);

macro_rules! asset {
    ($name:literal, $media:literal) => {
        ($name, $media, include_bytes!(concat!("../../assets/explore/", $name)))
    };
}

pub(super) const HTML: &str = "text/html; charset=utf-8";
pub(super) const JSON: &str = "application/json";
/// The interface's description.
pub(super) const OPENAPI: &str = include_str!("../../assets/explore/openapi.json");

const PAGE: &str = include_str!("../../assets/explore/index.html");
/// All that the page needs besides itself.
const ASSETS: &[Asset] = &[
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("api.js", "text/javascript; charset=utf-8"),
    asset!("app.js", "text/javascript; charset=utf-8"),
    asset!("changes.js", "text/javascript; charset=utf-8"),
    asset!("compare.js", "text/javascript; charset=utf-8"),
    asset!("complete.js", "text/javascript; charset=utf-8"),
    asset!("dom.js", "text/javascript; charset=utf-8"),
    asset!("find.js", "text/javascript; charset=utf-8"),
    asset!("latent.js", "text/javascript; charset=utf-8"),
    asset!("latents.js", "text/javascript; charset=utf-8"),
    asset!("links.js", "text/javascript; charset=utf-8"),
    asset!("plots.js", "text/javascript; charset=utf-8"),
    asset!("runs.js", "text/javascript; charset=utf-8"),
    asset!("steer.js", "text/javascript; charset=utf-8"),
    asset!("tokens.js", "text/javascript; charset=utf-8"),
    asset!("write.js", "text/javascript; charset=utf-8"),
];

/// Changes with any of the files, so that browsers may keep them for good.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let mut digest = blake3::Hasher::new();
        for (name, _, bytes) in ASSETS {
            digest.update(name.as_bytes()).update(bytes);
        }
        digest.finalize().to_hex()[..16].to_owned()
    })
}

/// The page; its files lie below their version, and so do those that they name beside themselves.
pub(super) fn page() -> String {
    PAGE.replace("\"assets/", &format!("\"assets/{}/", version()))
}

/// A file by its version and name: media type and contents.
pub(super) fn find(asked: &str, name: &str) -> Option<(&'static str, &'static [u8])> {
    let found = ASSETS.iter().find(|(known, _, _)| *known == name && asked == version());
    found.map(|(_, media, bytes)| (*media, *bytes))
}
