//! Weights that are stored in few bits, made f32 as they are read. The arithmetic is then that of any
//! other checkpoint: activations are not rounded.
//!
//! | `quant_method` | tensors of a linear layer | weight |
//! |---|---|---|
//! | `gptq` (arXiv:2210.17323; 2, 4, 8 bits) | `qweight` along inputs, `qzeros`, `scales`, `g_idx` | scale · (q - zero) |
//! | `awq` (arXiv:2306.00978; 4 bits, `gemm`) | `qweight` along outputs, `qzeros`, `scales` | scale · (q - zero) |
//! | `bitsandbytes`, 8 bits (arXiv:2208.07339) | `weight` I8, `SCB` | q · SCB / 127 |
//! | `bitsandbytes`, 4 bits (arXiv:2305.14314) | `weight` U8, `weight.absmax`, `weight.quant_map`, .. | map\[q\] · absmax |
//! | `fp8`, `fbgemm_fp8` | `weight` F8_E4M3, `weight_scale_inv` of tiles or `weight_scale` | q · scale |
//! | `compressed-tensors`, one number each | `weight` F8_E4M3 or I8, `weight_scale` | q · scale |
//! | `compressed-tensors`, `pack-quantized` (4, 8 bits, symmetric) | `weight_packed` along inputs, `weight_scale` | scale · (q - 2^(bits - 1)) |
//!
//! A linear layer without these tensors is stored in full, as heads and embeddings are.

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value;

use super::{
    super::{ModelError, config_file::ConfigFile},
    Raw, Weights,
};

const KNOWN: &str = "gptq, awq, bitsandbytes, fp8, fbgemm_fp8, compressed-tensors";

/// How linear layers are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Integers of some bits in words along the inputs; `offset` is added to zeros.
    Gptq { bits: u32, group: usize, offset: u32 },
    /// Integers of four bits in words along the outputs.
    Awq { group: usize },
    /// Either of bitsandbytes'.
    BitsAndBytes,
    /// One number for each weight, with scales for tiles of so many outputs and inputs, for rows, or
    /// for all.
    Scaled { tile: Option<(usize, usize)> },
    /// Integers of some bits in words along the inputs, around the middle of their range.
    Packed { bits: u32 },
}

impl Scheme {
    /// What `quantization_config` says, if it is there.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], naming the format.
    pub fn read_config(file: &ConfigFile) -> Result<Option<Self>, ModelError> {
        let Some(config) = file.get("quantization_config") else { return Ok(None) };
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        let number = |key: &str| config.get(key).and_then(Value::as_i64);
        let field = |key: &str| format!("quantization_config.{key}");
        let refused = |key: &str, expected: &str| {
            let found = config.get(key).map_or("absent".to_owned(), Value::to_string);
            Err(file.unsupported(&field(key), found, expected))
        };
        let group = number("group_size").or_else(|| number("q_group_size")).unwrap_or(-1);
        let group = usize::try_from(group).unwrap_or(usize::MAX).max(1);
        let bits = number("bits").or_else(|| number("w_bit"));
        Ok(Some(match text("quant_method").unwrap_or_default() {
            "gptq" => match bits {
                Some(bits @ (2 | 4 | 8)) => {
                    let plain = text("checkpoint_format") == Some("gptq_v2");
                    Self::Gptq { bits: bits as u32, group, offset: u32::from(!plain) }
                }
                _ => return refused("bits", "2, 4, 8 of gptq"),
            },
            "awq" => match (bits, text("version").unwrap_or("gemm").to_lowercase().as_str()) {
                (Some(4), "gemm") => Self::Awq { group },
                (Some(4), _) => return refused("version", "gemm of awq"),
                _ => return refused("bits", "4 of awq"),
            },
            "bitsandbytes" => Self::BitsAndBytes,
            "fp8" | "fbgemm_fp8" => Self::Scaled { tile: tile(config) },
            "compressed-tensors" => match text("format").unwrap_or_default() {
                "float-quantized" | "int-quantized" | "naive-quantized" => {
                    Self::Scaled { tile: None }
                }
                "pack-quantized" => match packed_bits(config) {
                    Some(bits @ (4 | 8)) => Self::Packed { bits },
                    _ => return refused("config_groups", "symmetric weights of 4 or 8 bits"),
                },
                _ => {
                    let known = "float-quantized, int-quantized, naive-quantized, pack-quantized";
                    return refused("format", known);
                }
            },
            _ => return refused("quant_method", KNOWN),
        }))
    }

    /// The weight [out, in] of the linear layer at `w`; none if it is stored in full.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit each other.
    pub fn read(
        &self,
        w: &Weights,
        (input, output): (usize, usize),
    ) -> Result<Option<Vec<f32>>, ModelError> {
        let packed = w.contains("qweight");
        match *self {
            Self::Gptq { bits, group, offset } if packed => {
                gptq(w, (input, output), (bits, group, offset)).map(Some)
            }
            Self::Awq { group } if packed => awq(w, (input, output), group).map(Some),
            Self::BitsAndBytes if w.contains("SCB") => int8(w, (input, output)).map(Some),
            Self::BitsAndBytes if w.contains("weight.absmax") => {
                four_bits(w, input * output).map(Some)
            }
            Self::Scaled { tile } if w.contains("weight_scale_inv") => {
                scaled(w, (input, output), ("weight_scale_inv", tile)).map(Some)
            }
            Self::Scaled { tile } if w.contains("weight_scale") => {
                scaled(w, (input, output), ("weight_scale", tile)).map(Some)
            }
            Self::Packed { bits } if w.contains("weight_packed") => {
                packed_rows(w, (input, output), bits).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Bits of packed weights, if all groups of layers have as many and no zeros of their own.
fn packed_bits(config: &Value) -> Option<u32> {
    let groups = config.get("config_groups")?.as_object()?.values();
    let mut bits = groups.map(|group| {
        let weights = group.get("weights")?;
        let plain = weights.get("symmetric") == Some(&Value::Bool(true))
            && weights.get("type").and_then(Value::as_str) == Some("int");
        weights.get("num_bits")?.as_u64().filter(|_| plain)
    });
    let first = bits.next()??;
    bits.all(|other| other == Some(first)).then_some(first as u32)
}

/// Outputs and inputs that share a scale.
fn tile(config: &Value) -> Option<(usize, usize)> {
    let sizes = config.get("weight_block_size")?.as_array()?;
    let size = |i: usize| usize::try_from(sizes.get(i)?.as_u64()?).ok().filter(|n| *n > 0);
    Some((size(0)?, size(1)?))
}

fn gptq(
    w: &Weights,
    (input, output): (usize, usize),
    (bits, group, offset): (u32, usize, u32),
) -> Result<Vec<f32>, ModelError> {
    let per_word = (32 / bits) as usize;
    let group = group.min(input);
    let groups = input.div_ceil(group);
    let q = w.words("qweight", &[input.div_ceil(per_word), output])?;
    let zeros = w.words("qzeros", &[groups, output.div_ceil(per_word)])?;
    let scales = w.floats("scales", &[groups, output])?;
    let group_of: Vec<usize> = match w.contains("g_idx") {
        true => w.words("g_idx", &[input])?.iter().map(|g| *g as usize).collect(),
        false => (0..input).map(|i| i / group).collect(),
    };
    if group_of.iter().any(|g| *g >= groups) {
        return Err(w.misfit("g_idx", "names a group that does not exist"));
    }
    let mask = u32::MAX >> (32 - bits);
    let part = |word: u32, i: usize| word >> (bits as usize * (i % per_word)) & mask;
    let mut weight = vec![0.0; output * input];
    for (i, g) in group_of.into_iter().enumerate() {
        for o in 0..output {
            let value = part(q[i / per_word * output + o], i);
            // Most were stored less one, within their bits.
            let zero = part(zeros[g * output.div_ceil(per_word) + o / per_word], o);
            let zero = (zero + offset) & mask;
            weight[o * input + i] =
                scales[g * output + o] * (f64::from(value) - f64::from(zero)) as f32;
        }
    }
    Ok(weight)
}

fn packed_rows(
    w: &Weights,
    (input, output): (usize, usize),
    bits: u32,
) -> Result<Vec<f32>, ModelError> {
    let per_word = (32 / bits) as usize;
    let words = input.div_ceil(per_word);
    let q = w.words("weight_packed", &[output, words])?;
    let scales = w.floats_of_any_shape("weight_scale")?;
    let groups = scales.len() / output;
    if groups == 0 || scales.len() != groups * output || !input.is_multiple_of(groups) {
        let what = format!("has {} scales for [{output}, {input}]", scales.len());
        return Err(w.misfit("weight_scale", &what));
    }
    let (mask, middle) = (u32::MAX >> (32 - bits), (1_u32 << (bits - 1)) as f32);
    let weight = |o: usize, i: usize| {
        let word = q[o * words + i / per_word] >> (bits as usize * (i % per_word));
        scales[o * groups + i / (input / groups)] * ((word & mask) as f32 - middle)
    };
    Ok((0..output)
        .flat_map(|o| (0..input).map(move |i| (o, i)))
        .map(|(o, i)| weight(o, i))
        .collect())
}

/// Of each eight outputs in a word, where its four bits are.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

fn awq(w: &Weights, (input, output): (usize, usize), group: usize) -> Result<Vec<f32>, ModelError> {
    let group = group.min(input);
    let (groups, words) = (input.div_ceil(group), output.div_ceil(8));
    let q = w.words("qweight", &[input, words])?;
    let zeros = w.words("qzeros", &[groups, words])?;
    let scales = w.floats("scales", &[groups, output])?;
    let part = |words: &[u32], o: usize| (words[o / 8] >> (4 * AWQ_PLACES[o % 8]) & 15) as f32;
    let mut weight = vec![0.0; output * input];
    for i in 0..input {
        let (q, g) = (&q[i * words..], i / group);
        for o in 0..output {
            let zero = part(&zeros[g * words..], o);
            weight[o * input + i] = scales[g * output + o] * (part(q, o) - zero);
        }
    }
    Ok(weight)
}

fn int8(w: &Weights, (input, output): (usize, usize)) -> Result<Vec<f32>, ModelError> {
    let scales = w.floats("SCB", &[output])?;
    let raw = w.raw("weight", Some(&[output, input]))?;
    if raw.dtype != Dtype::I8 {
        return Err(w.format("weight", &raw));
    }
    let rows = raw.bytes.chunks_exact(input).zip(scales);
    Ok(rows.flat_map(|(row, s)| row.iter().map(move |q| f32::from(*q as i8) * s / 127.0)).collect())
}

/// NF4 and FP4: two weights in a byte, the first in its upper half, a scale for each block of them,
/// which may be in eight bits itself.
fn four_bits(w: &Weights, count: usize) -> Result<Vec<f32>, ModelError> {
    let kinds = ["nf4", "fp4"].map(|kind| format!("weight.quant_state.bitsandbytes__{kind}"));
    let state = kinds.iter().find(|name| w.contains(name)).unwrap_or(&kinds[0]);
    let raw = w.raw(state, None)?;
    let settings: Value = serde_json::from_slice(&raw.bytes)
        .map_err(|e| w.misfit(state, &format!("is not its settings: {e}")))?;
    let number = |key: &str| settings.get(key).and_then(Value::as_f64);
    let size = |key: &str| number(key).map(|n| n as usize).filter(|n| *n > 0);
    let block = size("blocksize").ok_or_else(|| w.misfit(state, "gives no blocksize"))?;
    let (map, q) = (w.floats("weight.quant_map", &[16])?, w.raw("weight", None)?);
    let blocks = count.div_ceil(block);
    let scales = match w.contains("weight.nested_absmax") {
        false => w.floats("weight.absmax", &[blocks])?,
        true => {
            let outer = size("nested_blocksize").unwrap_or(256);
            let offset = number("nested_offset").unwrap_or(0.0) as f32;
            let codes = w.raw("weight.absmax", Some(&[blocks]))?;
            let map = w.floats("weight.nested_quant_map", &[256])?;
            let absmax = w.floats("weight.nested_absmax", &[blocks.div_ceil(outer)])?;
            let scale =
                |(i, code): (usize, &u8)| map[usize::from(*code)] * absmax[i / outer] + offset;
            codes.bytes.iter().enumerate().map(scale).collect()
        }
    };
    if q.dtype != Dtype::U8 || q.bytes.len() != count.div_ceil(2) || scales.len() != blocks {
        return Err(w.misfit("weight", &format!("does not hold {count} numbers of four bits")));
    }
    let halves = q.bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let weights = halves.take(count).enumerate();
    Ok(weights.map(|(i, code)| map[usize::from(code)] * scales[i / block]).collect())
}

fn scaled(
    w: &Weights,
    (input, output): (usize, usize),
    (name, tile): (&str, Option<(usize, usize)>),
) -> Result<Vec<f32>, ModelError> {
    let raw = w.raw("weight", Some(&[output, input]))?;
    let read: fn(u8) -> f32 = match raw.dtype {
        Dtype::F8_E4M3 => e4m3,
        Dtype::I8 => |q| f32::from(q as i8),
        _ => return Err(w.format("weight", &raw)),
    };
    let scales = w.floats_of_any_shape(name)?;
    let (rows, columns) = match tile {
        Some(tile) => tile,
        None if scales.len() == output => (1, input),
        None => (output, input),
    };
    let across = input.div_ceil(columns);
    if scales.len() != output.div_ceil(rows) * across {
        return Err(w.misfit(name, &format!("has {} scales for [{output}, {input}]", scales.len())));
    }
    let scale = |i: usize| scales[i / input / rows * across + i % input / columns];
    Ok(raw.bytes.iter().enumerate().map(|(i, q)| read(*q) * scale(i)).collect())
}

/// Sign, four bits of exponent with bias 7, three of fraction; no infinities (arXiv:2209.05433).
fn e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2.0_f32.powi(-9),
        _ => (1.0 + fraction / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

impl Weights {
    /// Integers of 32 bits.
    fn words(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>, ModelError> {
        let raw = self.raw(name, Some(shape))?;
        if !matches!(raw.dtype, Dtype::I32 | Dtype::U32) {
            return Err(self.format(name, &raw));
        }
        Ok(raw.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.widened(name, self.raw(name, Some(shape))?)
    }

    fn floats_of_any_shape(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.widened(name, self.raw(name, None)?)
    }

    fn widened(&self, name: &str, raw: Raw<'_>) -> Result<Vec<f32>, ModelError> {
        let halves = || raw.bytes.as_chunks::<2>().0.iter();
        Ok(match raw.dtype {
            Dtype::F32 => {
                raw.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            Dtype::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => return Err(self.format(name, &raw)),
        })
    }

    /// The error for a tensor that does not fit the others of its layer.
    fn misfit(&self, name: &str, what: &str) -> ModelError {
        ModelError::file(&self.files.source, format!("tensor `{}` {what}", self.name(name)))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use candle_core::{DType, Device, Tensor};
    use safetensors::tensor::TensorView;
    use serde_json::json;

    use super::*;

    /// A tensor to be written: format, shape, bytes.
    type Part = (Dtype, Vec<usize>, Vec<u8>);

    fn write(dir: &Path, parts: &HashMap<String, Part>) {
        let views: HashMap<&String, TensorView<'_>> = parts
            .iter()
            .map(|(name, (d, s, b))| (name, TensorView::new(*d, s.clone(), b).unwrap()))
            .collect();
        let bytes = safetensors::serialize(views, None).unwrap();
        fs_err::write(dir.join("model.safetensors"), bytes).unwrap();
    }

    fn words(shape: &[usize], data: &[u32]) -> Part {
        (Dtype::I32, shape.to_vec(), data.iter().flat_map(|w| w.to_le_bytes()).collect())
    }

    fn floats(shape: &[usize], data: &[f32]) -> Part {
        (Dtype::F32, shape.to_vec(), data.iter().flat_map(|w| w.to_le_bytes()).collect())
    }

    fn scheme(config: Value) -> Result<Option<Scheme>, ModelError> {
        let keys = json!({ "quantization_config": config });
        Scheme::read_config(&ConfigFile::new(
            "config.json".into(),
            keys.as_object().unwrap().clone(),
        ))
    }

    /// The weight [out, in] that is read back.
    fn read(config: Value, parts: &[(&str, Part)], sizes: (usize, usize)) -> Vec<Vec<f32>> {
        let dir = tempfile::tempdir().unwrap();
        let named = parts.iter().map(|(name, part)| (format!("layer.{name}"), part.clone()));
        write(dir.path(), &named.collect());
        let scheme = scheme(config).unwrap();
        let w = Weights::open(dir.path(), &Device::Cpu, (DType::F32, scheme)).unwrap();
        let weight: Tensor = w.pp("layer").matrix(sizes).unwrap();
        weight.to_vec2().unwrap()
    }

    /// Codes of four bits, other ones for each input and output.
    fn code(i: usize, o: usize) -> u32 {
        ((i * 7 + o * 3) % 16) as u32
    }

    const IN: usize = 16;
    const OUT: usize = 8;

    fn expected(group: impl Fn(usize) -> usize) -> Vec<Vec<f32>> {
        let value = |i: usize, o: usize| {
            let g = group(i);
            scale(g, o) * (code(i, o) as f32 - zero(g, o) as f32)
        };
        (0..OUT).map(|o| (0..IN).map(|i| value(i, o)).collect()).collect()
    }

    fn scale(g: usize, o: usize) -> f32 {
        0.5 + g as f32 + o as f32 / 8.0
    }

    fn zero(g: usize, o: usize) -> u32 {
        ((g * 5 + o) % 14 + 1) as u32
    }

    fn scales() -> Part {
        let all: Vec<f32> = (0..2).flat_map(|g| (0..OUT).map(move |o| scale(g, o))).collect();
        floats(&[2, OUT], &all)
    }

    #[test]
    fn gptq_words_hold_eight_inputs_and_zeros_less_one() {
        let word = |r: usize, o: usize| (0..8).map(|b| code(r * 8 + b, o) << (4 * b)).sum();
        let q: Vec<u32> = (0..IN / 8).flat_map(|r| (0..OUT).map(move |o| word(r, o))).collect();
        let zeros =
            |less: u32| [0, 1].map(|g| (0..8).map(|o| (zero(g, o) - less) << (4 * o)).sum::<u32>());
        let parts = |less| {
            vec![
                ("qweight", words(&[IN / 8, OUT], &q)),
                ("qzeros", words(&[2, 1], &zeros(less))),
                ("scales", scales()),
            ]
        };
        let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 8});
        assert_eq!(read(config.clone(), &parts(1), (IN, OUT)), expected(|i| i / 8));
        let mut sorted = parts(1);
        let groups: Vec<u32> = (0..IN).map(|i| (i % 2) as u32).collect();
        sorted.push(("g_idx", words(&[IN], &groups)));
        assert_eq!(read(config, &sorted, (IN, OUT)), expected(|i| i % 2));
        let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 8, "checkpoint_format": "gptq_v2"});
        assert_eq!(read(config, &parts(0), (IN, OUT)), expected(|i| i / 8));
    }

    #[test]
    fn awq_words_hold_eight_outputs_in_their_own_order() {
        // As AutoAWQ packs: the four bits at place p are those of output ORDER[p].
        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let pack = |value: &dyn Fn(usize) -> u32| (0..8).map(|p| value(ORDER[p]) << (4 * p)).sum();
        let q: Vec<u32> = (0..IN).map(|i| pack(&|o| code(i, o))).collect();
        let zeros: Vec<u32> = (0..2).map(|g| pack(&|o| zero(g, o))).collect();
        let parts = [
            ("qweight", words(&[IN, 1], &q)),
            ("qzeros", words(&[2, 1], &zeros)),
            ("scales", scales()),
        ];
        let config = json!({"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"});
        assert_eq!(read(config, &parts, (IN, OUT)), expected(|i| i / 8));
    }

    #[test]
    fn bitsandbytes_in_eight_and_in_four_bits() {
        let config = json!({"quant_method": "bitsandbytes", "load_in_8bit": true});
        let parts = [
            (
                "weight",
                (Dtype::I8, vec![2, 3], [127_i8, -127, 1, 0, 64, -2].map(|q| q as u8).to_vec()),
            ),
            ("SCB", floats(&[2], &[2.0, 254.0])),
        ];
        assert_eq!(
            read(config.clone(), &parts, (3, 2)),
            [[2.0, -2.0, 2.0 / 127.0], [0.0, 128.0, -4.0]]
        );
        let map: Vec<f32> = (0..16).map(|q| q as f32 - 8.0).collect();
        let state = br#"{"quant_type": "nf4", "blocksize": 4, "nested_blocksize": 2, "nested_offset": 0.5}"#;
        let mut parts = vec![
            ("weight", (Dtype::U8, vec![4, 1], vec![0x01, 0xf8, 0x9a, 0x70])),
            ("weight.quant_map", floats(&[16], &map)),
            (
                "weight.quant_state.bitsandbytes__nf4",
                (Dtype::U8, vec![state.len()], state.to_vec()),
            ),
        ];
        let plain = ("weight.absmax", floats(&[2], &[3.0, 10.0]));
        let found = read(config.clone(), &[parts.clone(), vec![plain]].concat(), (4, 2));
        assert_eq!(found, [[-24.0, -21.0, 21.0, 0.0], [10.0, 20.0, -10.0, -80.0]]);
        let codes: Vec<f32> = (0..256).map(|q| q as f32 / 4.0).collect();
        parts.push(("weight.absmax", (Dtype::U8, vec![2], vec![5, 19])));
        parts.push(("weight.nested_quant_map", floats(&[256], &codes)));
        parts.push(("weight.nested_absmax", floats(&[1], &[2.0])));
        // The same scales: 5 / 4 · 2 + 0.5 and 19 / 4 · 2 + 0.5.
        assert_eq!(read(config, &parts, (4, 2)), found);
    }

    #[test]
    fn eight_bits_of_float_by_tile_by_row_and_by_layer() {
        let bytes: Vec<u8> = (0..12).map(|i| 0x38 + i).collect();
        let weight = ("weight", (Dtype::F8_E4M3, vec![3, 4], bytes));
        let value = |i: usize| e4m3(0x38 + i as u8);
        let rows = |scale: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
            (0..3).map(|o| (0..4).map(|i| value(o * 4 + i) * scale(o, i)).collect()).collect()
        };
        let tiles = ("weight_scale_inv", floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
        let config = json!({"quant_method": "fp8", "weight_block_size": [2, 3]});
        let by_tile = rows(&|o, i| (o / 2 * 2 + i / 3) as f32 + 1.0);
        assert_eq!(read(config, &[weight.clone(), tiles], (4, 3)), by_tile);
        let config = json!({"quant_method": "compressed-tensors", "format": "float-quantized"});
        let by_row = ("weight_scale", floats(&[3, 1], &[1.0, 5.0, 7.0]));
        let found = read(config.clone(), &[weight.clone(), by_row], (4, 3));
        assert_eq!(found, rows(&|o, _| [1.0, 5.0, 7.0][o]));
        let one = ("weight_scale", floats(&[1], &[3.0]));
        assert_eq!(read(config, &[weight, one], (4, 3)), rows(&|_, _| 3.0));
    }

    #[test]
    fn eight_bits_of_float_by_definition() {
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 2.0_f32.powi(-9)),
            (0x08, 2.0_f32.powi(-6)),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(e4m3(bits), value, "{bits:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn other_formats_are_refused_by_name() {
        for (config, word) in [
            (json!({"quant_method": "hqq"}), "hqq"),
            (json!({"quant_method": "gptq", "bits": 3}), "gptq"),
            (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "gemv"),
            (json!({"quant_method": "compressed-tensors", "format": "marlin-24"}), "marlin-24"),
            (json!({}), "quant_method"),
        ] {
            let words = scheme(config).unwrap_err().to_string();
            assert!(words.contains(word) && words.contains("quantization_config"), "{words}");
        }
    }
}
