//! convert_sae: an SAE from one format to another, proved by numbers.
//!
//! What was written is read again and compared with the source on rows (`compare`); `report` is what
//! people read. Nothing stands in the target until then.

pub(in crate::sae) mod compare;
mod report;

use std::{
    collections::BTreeMap,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, Parser};

use super::{
    Sae,
    formats::{self, Expected, Loaded, Target},
};
use crate::{
    capture::CaptureMeta,
    shard::ShardSet,
    stage::{
        CommonArgs, Context, Failure, Result, Stage, atomic,
        store::{Pointer, Store},
    },
};

/// Rows of a run that are compared at most.
const RUN_ROWS: usize = 4096;

const EXAMPLES: &str = "\
Examples:
  SAE_FROM=store/runs/my-sae SAE_TO=my-sae-sparsify SAE_FORMAT=sparsify convert_sae
  convert_sae --sae-from layer_20/width_16k/average_l0_71/params.npz --sae-to gemma
  convert_sae --sae-from trainer_0/ae.pt --sae-to sae --sae-format saelens
  convert_sae --sae-from saint.pt --top-k 64 --sae-to saint-saelens
  RUN_ID=my-capture HOOK=resid_post SAE_FROM=... convert_sae    compare on rows of a capture
  SAE_FROM=... convert_sae --check                              what it is, and whether it can be";

/// Converts an SAE between the formats of SAELens, sparsify, dictionary_learning, Gemma Scope,
/// OpenAI and SAINT.
///
/// Reads a directory or file of any of them, writes one of the first three, reads that again, and
/// prints how far latents and reconstructions of both are apart. Where that is more than rounding, or
/// the target has no place for what the SAE computes, nothing is written and the exit code is 65.
/// Pickles are read without running them.
#[derive(Parser, Debug)]
#[command(name = "convert_sae", version, after_help = EXAMPLES)]
pub struct ConvertSae {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    convert: ConvertArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Conversion")]
struct ConvertArgs {
    /// The SAE's directory or file
    #[arg(long, env, value_name = "PATH")]
    sae_from: PathBuf,
    #[command(flatten)]
    expected: Expected,
    /// The directory to write
    #[arg(long, env, value_name = "DIR")]
    sae_to: PathBuf,
    /// The format to write
    #[arg(long, env, value_name = "FORMAT", default_value = "saelens")]
    sae_format: Target,
    /// Which of the hooks of RUN_ID's capture to compare on, where it has several
    #[arg(long, env, value_name = "NAME")]
    hook: Option<String>,
}

impl Stage for ConvertSae {
    const SECTION: &'static str = "convert_sae";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run(&self, context: &Context) -> Result<()> {
        let source = self.read()?;
        let (rows, where_from) = self.rows(&source.sae)?;
        let to = &self.convert.sae_to;
        context.leave_if_asked("nothing was written")?;
        let work = beside(to)?;
        let mut notes = source.notes.clone();
        let target = self.convert.sae_format;
        notes.extend(formats::write(work.path(), target, &source.sae, &source.about)?);
        let expected = Expected { sae_from_format: Some(target.into()), top_k: None };
        let written = formats::read(work.path(), expected)?;
        context.leave_if_asked("nothing was written")?;
        let found = compare::compare(&source.sae, &written.sae, &rows);
        if found.active == 0 {
            notes.push("no latent is active in any of these rows: give RUN_ID".into());
        }
        context.print(&report::describe(&source, target));
        context.print(&report::notes(&notes));
        context.print(&report::table(&found, &where_from));
        report::verdict(&found)?;
        stand(work, to)?;
        tracing::info!("`{}` is written", to.display());
        Ok(())
    }

    fn check(&self, context: &Context) -> Result<()> {
        let source = self.read()?;
        formats::require(self.convert.sae_format, &source.sae, &source.about)?;
        let (rows, where_from) = self.rows(&source.sae)?;
        context.print(&report::describe(&source, self.convert.sae_format));
        context.print(&report::notes(&source.notes));
        let rows = rows.len() / source.sae.params.d_in;
        context.print(&format!("compare     on {rows} rows, {where_from}\n"));
        Ok(())
    }
}

impl ConvertSae {
    fn read(&self) -> Result<Loaded> {
        self.convert.expected.read_named("SAE_FROM", &self.convert.sae_from)
    }

    /// Rows to compare on, `[n, d_in]`, and where they are from.
    fn rows(&self, sae: &Sae) -> Result<(Vec<f32>, String)> {
        let Some(run_id) = &self.common.run_id else {
            return Ok((compare::drawn_rows(sae), "drawn at random, in many sizes".into()));
        };
        let store = Store::new(self.common.store_root());
        let (_, dir) = store.find(Some(run_id), Pointer::Capture)?;
        let capture = CaptureMeta::read_complete(&dir)?;
        let hook = &capture.hook(self.convert.hook.as_deref())?.name;
        let set = ShardSet::open(&dir, hook)?;
        let d_in = sae.params.d_in;
        if set.d_in() != d_in {
            let what = format!(
                "the SAE has d_in {d_in}, hook `{hook}` of run `{run_id}` has {}",
                set.d_in()
            );
            return Err(Failure::usage(what).hint("give another HOOK or RUN_ID, or none"));
        }
        let count = set.rows().min(RUN_ROWS);
        let mut rows = vec![0.0; count * d_in];
        for (i, row) in rows.chunks_exact_mut(d_in).enumerate() {
            // Spread evenly over the run.
            set.read_row(i * set.rows() / count, 1.0 / capture.activation_scale, row);
        }
        Ok((rows, format!("of hook `{hook}` of run `{run_id}`")))
    }
}

/// A directory beside the target to write in; it goes with the value.
fn beside(to: &Path) -> Result<tempfile::TempDir> {
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = to.file_name() else {
        let what = format!("SAE_TO `{}` is not a name for a directory", to.display());
        return Err(Failure::usage(what).hint("name a directory that need not exist yet"));
    };
    if to.exists() && !to.is_dir() {
        let what = format!("SAE_TO `{}` is no directory", to.display());
        return Err(Failure::usage(what).hint("name a directory that need not exist yet"));
    }
    fs_err::create_dir_all(parent)?;
    let prefix = format!(".{}-", name.to_string_lossy());
    // As any new directory; temporary ones are closed to others by default.
    let open = Permissions::from_mode(0o777);
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(&prefix).suffix(".partial").permissions(open);
    Ok(builder.tempdir_in(parent)?)
}

/// Gives the finished directory its name. An empty directory there is replaced, and one with the
/// same files left as it is.
fn stand(work: tempfile::TempDir, to: &Path) -> Result<()> {
    if to.exists() {
        let there = contents(to)?;
        if there == contents(work.path())? {
            return Ok(());
        }
        if !there.is_empty() {
            let what = format!("SAE_TO `{}` exists and holds something else", to.display());
            return Err(Failure::usage(what).hint("name a new directory, or remove that one"));
        }
    }
    // An empty directory is replaced by the rename itself.
    atomic::rename(work.path(), to)?;
    let _gone = work.keep();
    Ok(())
}

/// Digests of a directory's files by name; what is no file has none.
fn contents(dir: &Path) -> Result<BTreeMap<std::ffi::OsString, Option<String>>> {
    let mut all = BTreeMap::new();
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        let digest = match path.is_file() {
            true => Some(crate::shard::format::digest(&path)?.0),
            false => None,
        };
        all.insert(path.file_name().unwrap_or_default().to_owned(), digest);
    }
    Ok(all)
}
