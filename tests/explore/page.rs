//! The page in a real browser, over what the stages themselves write.

use std::{path::Path, process::Command};

use super::{
    super::{
        packages,
        workload::{TOP, succeed},
    },
    D_SAE, Demo, plant,
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/explore/browser.mjs");

#[test]
fn a_browser_browses_searches_opens_completes_steers_and_shares_a_link() {
    let Some(packages) = packages::node("explore") else { return };
    let demo = Demo::new();
    for sae in ["first", "second"] {
        fs_err::remove_dir_all(demo.run(sae).join("top_sentences")).ok();
        demo.stage(TOP, &[("SAE_RUN_ID", sae)]);
    }
    plant::names(&demo.run("first"), D_SAE);
    let server = demo.serve(&[]);
    // Imports are looked up from where the script lies.
    let script = packages.join("browser.mjs");
    fs_err::copy(SCRIPT, &script).unwrap();
    let screenshots = packages.with_file_name("screenshots");
    let (said, _) = browse(&script, &screenshots, &server.page());
    assert!(said.contains("the page does what it should"), "{said}");
}

fn browse(script: &Path, screenshots: &Path, address: &str) -> (String, String) {
    succeed(Command::new("node").arg(script).arg(address).arg(screenshots))
}
