//! The logit lens against the logits that `transformers` computes.

use pipeline_common::model::{Hook, Lens, ModelInfo};

use super::{Case, for_each_case, golden};

/// Of the numbers' size.
const TOLERANCE: f64 = 1e-4;

/// Logits are the lens of the last stream over the norm's divisor of each row, and what the biases of
/// norm and head add to every row: `y = z / s + c`. So of two rows `y - y' = z a - z' a'` with two numbers for
/// as many equations as there are tokens.
#[test]
fn logits_are_the_lens_of_the_stream_up_to_the_norm() {
    let mut seen = 0;
    for_each_case(|name, info, case| {
        let dir = golden(name).join("model");
        let Some(lens) = Lens::load(&dir).unwrap() else { return };
        let Some(stream) = last_stream(info, case) else { return };
        seen += 1;
        let cap = soft_cap(name);
        let uncapped = |y: &f32| {
            let y = f64::from(*y);
            cap.map_or(y, |cap| cap * (y / cap).atanh())
        };
        let logits: Vec<Vec<f64>> =
            case.activations["logits"].iter().map(|y| y.iter().map(uncapped).collect()).collect();
        let found: Vec<Vec<f64>> = lens
            .logits(&stream.concat())
            .unwrap()
            .iter()
            .map(|z| z.iter().map(|z| f64::from(*z)).collect())
            .collect();
        let mut firsts = vec![];
        for row in 1..logits.len() {
            let difference: Vec<f64> =
                logits[row].iter().zip(&logits[0]).map(|(a, b)| a - b).collect();
            let minus: Vec<f64> = found[0].iter().map(|z| -z).collect();
            let [own, first] = solved(&found[row], &minus, &difference);
            let size = difference.iter().map(|d| d.abs()).fold(0.0, f64::max);
            if size < 1e-3 {
                continue; // the same token at the same place
            }
            for (i, expected) in difference.iter().enumerate() {
                let got = own * found[row][i] + first * minus[i];
                let error = (got - expected).abs();
                assert!(error <= TOLERANCE * size, "{name} row {row} token {i}: {got}, {expected}");
            }
            assert!(own > 0.0, "{name} row {row}");
            firsts.push(first);
        }
        let (least, most) =
            firsts.iter().fold((f64::MAX, 0.0_f64), |(a, b), x| (x.min(a), x.max(b)));
        assert!(most - least <= 0.02 * most, "{name}: the first row's divisor is one: {firsts:?}");
    });
    assert!(seen >= 30, "{seen} cases with logits");
}

/// The output of the last block.
fn last_stream<'a>(info: &ModelInfo, case: &'a Case) -> Option<&'a [Vec<f32>]> {
    let layer = info.n_layers.checked_sub(1)?;
    let wanted = Hook::parse(&format!("blocks.{layer}.hook_resid_post"), info).ok()?;
    let named = |name: &&String| Hook::parse(name, info).is_ok_and(|hook| hook == wanted);
    let name = case.activations.keys().find(named)?;
    Some(&case.activations[name])
}

fn soft_cap(name: &str) -> Option<f64> {
    let config = fs_err::read(golden(name).join("model/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["final_logit_softcapping"].as_f64()
}

/// The two numbers that bring `a x + b y` nearest to `z`.
fn solved(a: &[f64], b: &[f64], z: &[f64]) -> [f64; 2] {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let (aa, ab, bb, az, bz) = (dot(a, a), dot(a, b), dot(b, b), dot(a, z), dot(b, z));
    let determinant = aa * bb - ab * ab;
    [(az * bb - bz * ab) / determinant, (bz * aa - az * ab) / determinant]
}
