//! Stores that cannot be written to, and disks that fill up.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Refusal, committed_and_unpublished, files, refused, text};
use crate::workload::{Contents, SAVE, TOP, TRAIN, Workload, succeed};

/// A small file system of its own, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, with a loud line, where nothing may be mounted.
    fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output();
        let said = match output {
            Ok(output) if output.status.success() => return Some(Self(dir)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(e) => e.to_string(),
        };
        let line =
            format!("SKIPPED, a full disk cannot be tried: mount is not permitted: {said}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        None
    }

    fn store(&self) -> &Path {
        self.0.path()
    }

    /// Fills the disk but for `left` bytes; the file to remove afterwards.
    fn fill_but(&self, left: u64) -> PathBuf {
        let path = self.store().join("ballast");
        let mut file = fs_err::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - left).unwrap();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone_with_the_container = Command::new("umount").arg(self.store()).status();
    }
}

fn on(disk: &Disk, work: &Workload, stage: &str) -> Command {
    let mut command = work.stage(stage);
    command.env("STORE_DIR", disk.store());
    command
}

const FULL: Refusal<'static> =
    Refusal { code: 69, error: &["No space left on device"], hint: "free space" };

#[test]
fn a_store_below_a_file_or_on_a_read_only_disk() {
    let work = Workload::new(20);
    let store = work.path("text.jsonl").join("store");
    let error = [text(&store), "Not a directory"];
    let expected = Refusal { code: 69, error: &error, hint: "STORE_DIR" };
    refused(work.stage(SAVE).env("STORE_DIR", &store), &expected);
    let Some(disk) = Disk::mount("size=8m") else { return };
    [SAVE, TRAIN].iter().for_each(|stage| drop(succeed(&mut on(&disk, &work, stage))));
    succeed(Command::new("mount").args(["-o", "remount,ro"]).arg(disk.store()));
    let error = [text(disk.store()), "Read-only file system"];
    let expected = Refusal { code: 69, error: &error, hint: "STORE_DIR" };
    refused(on(&disk, &work, SAVE).env("RUN_ID", "new"), &expected);
    refused(on(&disk, &work, TRAIN).env("SAE_RUN_ID", "new"), &expected);
    refused(&mut on(&disk, &work, TOP), &expected);
}

#[test]
fn a_capture_that_fills_the_disk_goes_on_when_there_is_space() {
    let work = Workload::new(400);
    work.succeed(SAVE, &[]);
    let undisturbed = work.take();
    let Some(disk) = Disk::mount("size=3m") else { return };
    refused(&mut on(&disk, &work, SAVE), &FULL);
    let before = committed_and_unpublished(disk.store());
    assert!(before >= 1, "no shard was committed");
    refused(&mut on(&disk, &work, SAVE), &FULL);
    assert_eq!(committed_and_unpublished(disk.store()), before);
    succeed(Command::new("mount").args(["-o", "remount,size=32m"]).arg(disk.store()));
    succeed(&mut on(&disk, &work, SAVE));
    Contents::read(disk.store()).assert_same(&undisturbed, "a full disk");
}

#[test]
fn a_training_that_fills_the_disk_goes_on_at_its_checkpoint() {
    let work = Workload::new(200);
    let stages = [SAVE, TRAIN, TOP];
    stages.iter().for_each(|stage| drop(work.succeed(stage, &[])));
    let undisturbed = work.take();
    let Some(disk) = Disk::mount("size=32m") else { return };
    succeed(&mut on(&disk, &work, SAVE));
    // Room for one checkpoint of 403,200 bytes, not for two.
    let ballast = disk.fill_but(700 << 10);
    refused(&mut on(&disk, &work, TRAIN), &FULL);
    let run = disk.store().join("runs/training");
    let latest = fs_err::read_to_string(run.join("checkpoints/latest.json")).unwrap();
    assert!(latest.contains("\"step\": 25"), "{latest}");
    assert!(!run.join("meta.json").exists() && !disk.store().join("sae_run_id.txt").exists());
    fs_err::remove_file(ballast).unwrap();
    let (_, said) = succeed(&mut on(&disk, &work, TRAIN));
    assert!(said.contains("going on at step 25"), "{said}");

    let ballast = disk.fill_but(100 << 10);
    refused(&mut on(&disk, &work, TOP), &FULL);
    let left = files(&run.join("top_sentences"), "");
    assert!(left.iter().all(|path| path.ends_with("parts")), "half of the results: {left:?}");
    fs_err::remove_file(ballast).unwrap();
    succeed(&mut on(&disk, &work, TOP));
    Contents::read(disk.store()).assert_same(&undisturbed, "a full disk");
}
