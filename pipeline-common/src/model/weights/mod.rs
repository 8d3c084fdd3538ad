//! The tensors of a checkpoint: one file or several with an index, safetensors or PyTorch's own.
//!
//! Files are mapped, so a tensor that is never asked for is never read.

mod quantised;
mod shard;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use serde::Deserialize;

use super::ModelError;
pub use quantised::Scheme;
use shard::{Raw, Shard};

/// Files that hold a whole checkpoint, and indices of those that hold a part each, first choice
/// first.
const CHECKPOINTS: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

/// A place among a checkpoint's tensors: names are joined with dots, as modules nest.
#[derive(Clone)]
pub struct Weights {
    files: Arc<Files>,
    prefix: String,
    device: Device,
    /// What tensors are converted to.
    dtype: DType,
    /// What the weights of linear layers are multiplied in.
    products: DType,
    /// Whether those weights are stored [in, out].
    transposed: bool,
    /// How some of those weights are stored in few bits.
    scheme: Option<Scheme>,
}

struct Files {
    /// The file, or the index, that errors name.
    source: PathBuf,
    shards: Vec<(PathBuf, Shard)>,
    /// Tensor name to its shard.
    places: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens a checkpoint's files and checks their headers; reads no tensor.
    ///
    /// Tensors will be converted to `dtype` and put on `device` when asked for. On a CPU bf16 is
    /// the format of products alone: everything else stays f32.
    ///
    /// # Errors
    /// Missing, truncated or malformed files, and an index that names a file that is not there.
    pub fn open(
        dir: &Path,
        device: &Device,
        (dtype, scheme): (DType, Option<Scheme>),
    ) -> Result<Self, ModelError> {
        let files = Arc::new(Files::open(dir)?);
        let tensors = if device.is_cpu() && dtype == DType::BF16 { DType::F32 } else { dtype };
        let (prefix, device) = (String::new(), device.clone());
        let transposed = false;
        Ok(Self { files, prefix, device, dtype: tensors, products: dtype, transposed, scheme })
    }

    /// What the weights of linear layers are multiplied in.
    pub fn products(&self) -> DType {
        self.products
    }

    /// The place of a module below this one.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.name(&name.to_string()), ..self.clone() }
    }

    /// The place of a module beside this one.
    pub fn beside(&self, name: &str) -> Self {
        let parent = self.prefix.rsplit_once('.').map_or("", |(parent, _)| parent);
        Self { prefix: parent.to_owned(), ..self.clone() }.pp(name)
    }

    /// The same place, where weights of linear layers are stored [in, out] if told so.
    pub fn transposed(self, transposed: bool) -> Self {
        Self { transposed, ..self }
    }

    fn name(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    /// Whether the checkpoint has a tensor of that name here.
    pub fn contains(&self, name: &str) -> bool {
        self.files.places.contains_key(&self.name(name))
    }

    /// Reads the weight of the linear layer that is here, [out, in].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn matrix(&self, (input, output): (usize, usize)) -> Result<Tensor, ModelError> {
        if let Some(scheme) = &self.scheme
            && let Some(weight) = scheme.read(self, (input, output))?
        {
            let weight = Tensor::from_vec(weight, (output, input), &self.device)?;
            return Ok(weight.to_dtype(self.dtype)?);
        }
        if self.transposed {
            return Ok(self.get("weight", &[input, output])?.t()?.contiguous()?);
        }
        self.get("weight", &[output, input])
    }

    /// Ones `[d]`, where a family has no weight.
    pub fn ones(&self, d: usize) -> Result<Tensor, ModelError> {
        Ok(Tensor::ones(d, self.dtype, &self.device)?)
    }

    /// Reads a tensor, which must have the shape that `config.json` implies.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or is not stored as f32, f16 or bf16.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let raw = self.raw(name, Some(shape))?;
        match raw.tensor(&self.device) {
            Some(tensor) => Ok(tensor?.to_dtype(self.dtype)?),
            None => Err(self.format(name, &raw)),
        }
    }

    /// A tensor as it is stored, which must have that shape if one is given.
    fn raw(&self, name: &str, shape: Option<&[usize]>) -> Result<Raw<'_>, ModelError> {
        let tensor = self.name(name);
        let place = self.files.places.get(&tensor).map(|at| &self.files.shards[*at]);
        let path = place.map_or(&self.files.source, |(path, _)| path).clone();
        let Some(raw) = place.and_then(|(_, shard)| shard.get(&tensor)) else {
            return Err(ModelError::MissingTensor { path, tensor });
        };
        match shape.filter(|shape| raw.shape != *shape) {
            Some(expected) => Err(ModelError::Shape {
                path,
                tensor,
                found: raw.shape,
                expected: expected.to_vec(),
            }),
            None => Ok(raw),
        }
    }

    /// The error for a tensor in a format that is not expected here.
    fn format(&self, name: &str, raw: &Raw<'_>) -> ModelError {
        let tensor = self.name(name);
        let at = self.files.places.get(&tensor).map(|at| &self.files.shards[*at].0);
        let path = at.unwrap_or(&self.files.source).clone();
        ModelError::Format { path, tensor, found: format!("{:?}", raw.dtype) }
    }
}

impl Files {
    fn open(dir: &Path) -> Result<Self, ModelError> {
        for (single, index) in CHECKPOINTS.map(|(s, i)| (dir.join(s), dir.join(i))) {
            if single.is_file() {
                let shard = Shard::open(&single)?;
                let names = shard.tensors().into_iter().map(|(name, ..)| (name, 0));
                let places = names.collect();
                return Ok(Self { source: single.clone(), shards: vec![(single, shard)], places });
            }
            if index.is_file() {
                return Self::sharded(dir, index);
            }
        }
        let what = "model.safetensors or model.safetensors.index.json, pytorch_model.bin or \
                    pytorch_model.bin.index.json";
        Err(ModelError::Missing { what, dir: dir.to_owned() })
    }

    fn sharded(dir: &Path, index: PathBuf) -> Result<Self, ModelError> {
        let text = fs_err::read(&index).map_err(|e| ModelError::file(&index, e))?;
        let map: Index = serde_json::from_slice(&text).map_err(|e| ModelError::file(&index, e))?;
        let (mut shards, mut known) = (Vec::new(), HashMap::new());
        let mut places = HashMap::new();
        for (tensor, shard) in map.weight_map {
            let at = match known.get(&shard) {
                Some(&at) => at,
                None => {
                    let path = dir.join(&shard);
                    if Path::new(&shard).file_name() != Some(shard.as_ref()) || !path.is_file() {
                        return Err(ModelError::MissingShard { index, tensor, shard });
                    }
                    shards.push((path.clone(), Shard::open(&path)?));
                    known.insert(shard, shards.len() - 1);
                    shards.len() - 1
                }
            };
            places.insert(tensor, at);
        }
        Ok(Self { source: index, shards, places })
    }
}

/// What the headers of a checkpoint's files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Weights in all files.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Number formats with their share of the weights, largest first.
    pub dtypes: Vec<(String, u64)>,
}

/// Reads the headers of a checkpoint's files; no tensor is read.
///
/// # Errors
/// Missing, truncated or malformed files, and an index that names a file that is not there.
pub fn headers(dir: &Path) -> Result<Headers, ModelError> {
    let files = Files::open(dir)?;
    let (mut parameters, mut bytes) = (0, 0);
    let mut dtypes = BTreeMap::<String, u64>::new();
    for (_, dtype, shape) in files.shards.iter().flat_map(|(_, shard)| shard.tensors()) {
        if matches!(dtype, Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL) {
            continue;
        }
        let count = shape.iter().product::<usize>() as u64;
        parameters += count;
        bytes += count * dtype.bitsize() as u64 / 8;
        *dtypes.entry(format!("{dtype:?}")).or_default() += count;
    }
    let mut dtypes: Vec<(String, u64)> = dtypes.into_iter().collect();
    dtypes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    Ok(Headers { parameters, bytes, dtypes })
}
