//! The files that the page is made of, embedded.

/// Name, media type and contents; the first is the page itself.
type Asset = (&'static str, &'static str, &'static [u8]);

macro_rules! asset {
    ($name:literal, $media:literal) => {
        ($name, $media, include_bytes!(concat!("../../assets/explore/", $name)))
    };
}

/// All of them; each but the page and the API's description is served below `/assets/`.
const ASSETS: &[Asset] = &[
    asset!("index.html", "text/html; charset=utf-8"),
    asset!("openapi.json", "application/json"),
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

/// A file by its name: media type and contents.
pub(super) fn find(name: &str) -> Option<(&'static str, &'static [u8])> {
    let found = ASSETS.iter().find(|(known, _, _)| *known == name);
    found.map(|(_, media, bytes)| (*media, *bytes))
}
