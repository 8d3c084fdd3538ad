//! All rows of one hook of a complete run, memory-mapped.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use half::{f16, slice::HalfFloatSliceExt};
use memmap2::{Advice, Mmap};

use super::{Committed, HookFile, ShardError, Stats, TokenFile, format, manifest};

/// The manifest of a complete run.
pub const MANIFEST: &str = "manifest.jsonl";

/// One hook's rows of one shard, mapped and verified.
#[derive(Debug)]
pub struct Shard {
    map: Mmap,
    /// Byte offset of the first row.
    begin: usize,
    rows: usize,
    d_in: usize,
    sum: Vec<f64>,
    committed: Committed,
}

impl Shard {
    /// Maps the file of one hook, checking length, header, shape and blake3 against the manifest.
    ///
    /// # Errors
    /// [`ShardError`] naming the file and what differs.
    pub fn open(run_dir: &Path, committed: Committed, file: &HookFile) -> Result<Self, ShardError> {
        let path = run_dir.join(&file.file.path);
        let map = verified_map(&path, file)?;
        let tensors = format::parse(&path, &map)?;
        let bad = |reason: String| ShardError::Format { path: path.clone(), reason };
        let view = tensors.tensor("activations").map_err(|e| bad(e.to_string()))?;
        let sum = tensors.tensor("sum").map_err(|e| bad(e.to_string()))?;
        let &[rows, d_in] = view.shape() else {
            return Err(bad("`activations` has no two dimensions".into()));
        };
        mismatch(&path, "rows", committed.rows, rows as u64)?;
        let begin = view.data().as_ptr() as usize - map.as_ptr() as usize;
        if !begin.is_multiple_of(size_of::<f16>()) {
            return Err(bad(format!("`activations` begins at odd byte {begin}")));
        }
        let sum = sum.data().chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        Ok(Self { map, begin, rows, d_in, sum, committed })
    }

    /// The rows, `[rows, d_in]` row-major.
    pub fn rows(&self) -> &[f16] {
        let bytes = self.rows * self.d_in * size_of::<f16>();
        bytemuck::cast_slice(&self.map[self.begin..self.begin + bytes])
    }
}

/// The shards of one hook in manifest order; rows are numbered across them from 0.
#[derive(Debug)]
pub struct ShardSet {
    run_dir: PathBuf,
    shards: Vec<Shard>,
    /// First row of each shard, and the total.
    starts: Vec<usize>,
    d_in: usize,
    stats: Stats,
}

impl ShardSet {
    /// Opens every shard of `hook`, checking length, header, shape and blake3 against the
    /// manifest.
    ///
    /// # Errors
    /// [`ShardError`] naming the file and what differs.
    pub fn open(run_dir: &Path, hook: &str) -> Result<Self, ShardError> {
        let path = run_dir.join(MANIFEST);
        let lines = manifest::read(&path)?;
        let mut set = Self {
            run_dir: run_dir.to_owned(),
            shards: vec![],
            starts: vec![0],
            d_in: 0,
            stats: Stats::default(),
        };
        for committed in lines {
            set.add(committed, hook)?;
        }
        if set.rows() == 0 {
            let (found, expected) = ("0".to_owned(), format!("rows of hook `{hook}`"));
            return Err(ShardError::Mismatch { path, field: "number of rows", expected, found });
        }
        Ok(set)
    }

    fn add(&mut self, committed: Committed, hook: &str) -> Result<(), ShardError> {
        let Some(file) = committed.hooks.iter().find(|h| h.hook == hook).cloned() else {
            let known: Vec<_> = committed.hooks.iter().map(|h| h.hook.as_str()).collect();
            return Err(ShardError::Mismatch {
                path: self.run_dir.join(MANIFEST),
                field: "hook",
                expected: format!("one of {}", known.join(", ")),
                found: hook.to_owned(),
            });
        };
        let shard = Shard::open(&self.run_dir, committed, &file)?;
        if self.shards.is_empty() {
            self.d_in = shard.d_in;
            self.stats = Stats::new(shard.d_in);
        }
        let path = self.run_dir.join(&file.file.path);
        mismatch(&path, "d_in", self.d_in as u64, shard.d_in as u64)?;
        self.stats.merge(&Stats { sum: shard.sum.clone(), ..file.stats });
        self.starts.push(self.rows() + shard.rows);
        self.shards.push(shard);
        Ok(())
    }

    /// Rows of all shards.
    pub fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Width of a row.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// Statistics over all rows.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Asks the system to read these rows, of one shard, in one piece and in the background.
    pub fn fetch(&self, rows: Range<usize>) {
        let shard = self.starts.partition_point(|start| *start <= rows.start) - 1;
        let (first, width) = (self.starts[shard], self.d_in * size_of::<f16>());
        let Shard { map, begin, .. } = &self.shards[shard];
        let (from, bytes) = (begin + (rows.start - first) * width, rows.len() * width);
        // Only a hint: without it pages are read one by one when they are used.
        if let Err(error) = map.advise_range(Advice::WillNeed, from, bytes) {
            tracing::debug!("no reading ahead in {}: {error}", self.run_dir.display());
        }
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// First row of shard `i`, counted across shards.
    pub fn first_row(&self, i: usize) -> usize {
        self.starts[i]
    }

    /// The manifest line of shard `i`.
    pub fn committed(&self, i: usize) -> &Committed {
        &self.shards[i].committed
    }

    /// The rows of shard `i`, `[rows, d_in]` row-major.
    pub fn shard_rows(&self, i: usize) -> &[f16] {
        self.shards[i].rows()
    }

    /// Row `row`, counted across shards.
    pub fn row(&self, row: usize) -> &[f16] {
        let shard = self.starts.partition_point(|start| *start <= row) - 1;
        let begin = (row - self.starts[shard]) * self.d_in;
        &self.shard_rows(shard)[begin..begin + self.d_in]
    }

    /// Copies row `row` as f32 times `scale`.
    pub fn read_row(&self, row: usize, scale: f32, out: &mut [f32]) {
        self.row(row).convert_to_f32_slice(out);
        out.iter_mut().for_each(|x| *x *= scale);
    }

    /// Opens the token file of shard `i`, verified.
    ///
    /// # Errors
    /// [`ShardError`] naming the file and what differs.
    pub fn tokens(&self, i: usize) -> Result<TokenFile, ShardError> {
        verified_tokens(&self.run_dir, &self.shards[i].committed)
    }
}

/// Opens a shard's token file and checks it against the manifest.
///
/// # Errors
/// [`ShardError`] naming the file and what differs.
pub fn verified_tokens(run_dir: &Path, committed: &Committed) -> Result<TokenFile, ShardError> {
    let path = run_dir.join(&committed.tokens.path);
    let (blake3, bytes) = format::digest(&path)?;
    digests_agree(&path, (&committed.tokens.blake3, committed.tokens.bytes), (&blake3, bytes))?;
    let tokens = TokenFile::open(&path)?;
    mismatch(&path, "rows", committed.rows, tokens.rows() as u64)?;
    Ok(tokens)
}

fn verified_map(path: &Path, file: &HookFile) -> Result<Mmap, ShardError> {
    let map = format::map(path)?;
    let expected = (file.file.blake3.as_str(), file.file.bytes);
    // The length first: it is free, and truncation is the common damage.
    mismatch(path, "length in bytes", file.file.bytes, map.len() as u64)?;
    let blake3 = format::digest_bytes(&map);
    digests_agree(path, expected, (&blake3, map.len() as u64))?;
    Ok(map)
}

fn digests_agree(path: &Path, expected: (&str, u64), found: (&str, u64)) -> Result<(), ShardError> {
    mismatch(path, "length in bytes", expected.1, found.1)?;
    if expected.0 == found.0 {
        return Ok(());
    }
    let (expected, bytes, found) = (expected.0.to_owned(), found.1, found.0.to_owned());
    Err(ShardError::Digest { path: path.to_owned(), bytes, expected, found })
}

fn mismatch(path: &Path, field: &'static str, expected: u64, found: u64) -> Result<(), ShardError> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.to_string(), found.to_string());
    Err(ShardError::Mismatch { path: path.to_owned(), field, expected, found })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::shard::{ActivationWriter, Dropped, Tokens, tokens::Token};

    /// A run of shards with `rows[i]` rows each, element = row number + column / 8, one sentence
    /// of up to 4 rows per document.
    pub(crate) fn write_run(dir: &Path, rows: &[usize], d_in: usize) {
        let mut next = 0;
        for (n, &count) in rows.iter().enumerate() {
            let mut tokens = Tokens::new();
            let value = |i: usize| (next + i / d_in) as f32 + (i % d_in) as f32 / 8.0;
            let mut data: Vec<f32> = (0..count * d_in).map(value).collect();
            for (s, sentence) in (0..count).collect::<Vec<_>>().chunks(4).enumerate() {
                let token =
                    |r: &usize| Token { id: *r as u32, position: (*r % 4) as u32, offset: [0, 1] };
                tokens.push((n * 1000 + s) as u64, &format!("s{s}"), sentence.iter().map(token));
            }
            write_shard(dir, n, &mut data, &tokens);
            next += count;
        }
    }

    /// Commits one shard of hook `h` to the manifest of a complete run.
    pub(crate) fn write_shard(dir: &Path, n: usize, data: &mut [f32], tokens: &Tokens) {
        fs_err::create_dir_all(dir.join("h")).unwrap();
        fs_err::create_dir_all(dir.join("tokens")).unwrap();
        let name = format!("shard-0-{n}.safetensors");
        let path = dir.join("h").join(&name);
        let d_in = data.len() / tokens.rows();
        let mut writer = ActivationWriter::create(&path, "h", d_in, 1.0, vec![]).unwrap();
        writer.append(data).unwrap();
        let hook = writer.finish(&path, dir).unwrap();
        let committed = Committed {
            worker: 0,
            shard: n,
            unfinished: false,
            recapture: false,
            first_document: 0,
            end_document: 0,
            sentences: tokens.sentences() as u64,
            rows: tokens.rows() as u64,
            tokens_seen: 0,
            dropped: Dropped::default(),
            tokens: tokens.write(&dir.join("tokens").join(&name), dir, &vec![]).unwrap(),
            hooks: vec![hook],
        };
        manifest::append(&dir.join(MANIFEST), &committed).unwrap();
    }

    #[test]
    fn rows_and_statistics_come_back_across_shards() {
        let dir = tempfile::tempdir().unwrap();
        write_run(dir.path(), &[5, 3], 6);
        let set = ShardSet::open(dir.path(), "h").unwrap();
        assert_eq!((set.rows(), set.d_in(), set.shards()), (8, 6, 2));
        for row in 0..8 {
            assert_eq!(set.row(row)[2].to_f32(), row as f32 + 0.25);
        }
        assert_eq!(set.stats().sum[0], (0..8).sum::<i32>() as f64);
        assert_eq!(set.stats().max_abs, 7.625);
        assert_eq!(set.tokens(1).unwrap().rows(), 3);
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write_run(dir.path(), &[5], 6);
        let path = dir.path().join("h/shard-0-0.safetensors");
        let good = fs_err::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[4100] ^= 1;
        fs_err::write(&path, flipped).unwrap();
        assert!(matches!(ShardSet::open(dir.path(), "h"), Err(ShardError::Digest { .. })));
        fs_err::write(&path, &good[..good.len() - 2]).unwrap();
        assert!(matches!(ShardSet::open(dir.path(), "h"), Err(ShardError::Mismatch { .. })));
        fs_err::write(&path, good).unwrap();
        assert!(matches!(ShardSet::open(dir.path(), "other"), Err(ShardError::Mismatch { .. })));
    }

    #[test]
    fn a_value_beyond_f16_is_an_error_with_its_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut writer = ActivationWriter::create(&path, "h", 2, 1.0, vec![]).unwrap();
        writer.append(&mut [1.0, 2.0]).unwrap();
        match writer.append(&mut [1.0, 2.0, 3.0, 70_000.0]).unwrap_err() {
            ShardError::Overflow { row, value, .. } => assert_eq!((row, value), (2, 70_000.0)),
            other => panic!("{other}"),
        }
        let mut scaled = ActivationWriter::create(&path, "h", 2, 0.5, vec![]).unwrap();
        scaled.append(&mut [70_000.0, 1.0]).unwrap();
        assert!(!path.exists());
    }

    /// Pages of the shard's rows that are in memory, of those wholly within `rows`.
    fn resident(set: &ShardSet, rows: Range<usize>) -> (usize, usize) {
        let shard = &set.shards[0];
        let width = set.d_in * size_of::<f16>();
        let page = format::PAGE;
        let first = (shard.begin + rows.start * width).next_multiple_of(page);
        let bytes = (shard.begin + rows.end * width - first) / page * page;
        let mut pages = vec![0_u8; bytes / page];
        #[expect(unsafe_code, reason = "no safe call tells which pages are in memory")]
        // SAFETY: the range lies in the map, and there is a byte for each of its pages.
        let code = unsafe {
            libc::mincore(
                shard.map.as_ptr().add(first).cast_mut().cast(),
                bytes,
                pages.as_mut_ptr(),
            )
        };
        assert_eq!(code, 0);
        (pages.iter().filter(|page| **page & 1 == 1).count(), pages.len())
    }

    #[test]
    fn rows_that_are_fetched_come_in_one_piece() {
        // On a disk: what is on tmpfs cannot be dropped from memory.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        write_run(dir.path(), &[8192], 512);
        let set = ShardSet::open(dir.path(), "h").unwrap();
        let file = fs_err::File::open(dir.path().join("h/shard-0-0.safetensors")).unwrap();
        file.sync_all().unwrap();
        let drop = || {
            #[expect(unsafe_code, reason = "the pages go, and come back when they are read")]
            // SAFETY: the map is of a file and is only read.
            unsafe {
                set.shards[0].map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed).unwrap();
            }
            rustix::fs::fadvise(file.file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        };
        drop();
        assert!(resident(&set, 0..8192).0 < 100, "pages that stay in memory say nothing");
        set.fetch(2048..4096);
        let begin = std::time::Instant::now();
        while resident(&set, 2048..4096).0 < resident(&set, 2048..4096).1 {
            assert!(begin.elapsed().as_secs() < 20, "{:?}", resident(&set, 2048..4096));
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let others = resident(&set, 5120..8192);
        assert!(others.0 * 4 < others.1, "{others:?}");
    }
}
