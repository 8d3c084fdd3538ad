//! Traps of the formats, and hostile bytes behind right checksums.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use safetensors::Dtype;
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::{saelens::About, *};
use crate::{
    sae::{
        Activation, Parameters, RowNorm,
        convert::compare::tests::same,
        parameters::Shape,
        random::{Normal, Purpose},
        weights::tests::random_sae,
    },
    torch::{Bytes, View},
};

const ACTIVATIONS: [Activation; 4] =
    [Activation::TopK { k: 3 }, Activation::JumpRelu, Activation::Relu, Activation::Gated];

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/saes").join(file)
}

fn again(sae: &Sae, target: Target, about: &About) -> Sae {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), target, sae, about).unwrap();
    read(dir.path(), Expected::default()).unwrap().sae
}

/// Tensors come back with the same bits where the target has the same form.
#[test]
fn round_trips_keep_every_bit_where_nothing_is_folded() {
    for activation in ACTIVATIONS {
        let mut sae = random_sae(5, 9, activation);
        assert_eq!(again(&sae, Target::SaeLens, &About::default()), sae);
        // dictionary_learning's JumpReLU takes its input as it is.
        sae.subtract_b_dec = activation != Activation::JumpRelu;
        assert_eq!(again(&sae, Target::DictionaryLearning, &About::default()), sae);
        let written = write(Path::new("/nowhere"), Target::Sparsify, &sae, &About::default());
        match activation {
            Activation::TopK { .. } => {
                assert_eq!(again(&sae, Target::Sparsify, &About::default()), sae);
            }
            _ => assert!(matches!(written, Err(SaeError::Inexpressible { .. }))),
        }
    }
}

#[test]
fn a_bias_subtracted_from_the_input_moves_into_the_encoder_and_back() {
    for activation in ACTIVATIONS {
        let sae = random_sae(5, 9, activation);
        let without = adapt::subtracting(&sae, false);
        assert_ne!(without.params.b_enc, sae.params.b_enc);
        assert!(same(&sae, &without) && same(&sae, &adapt::subtracting(&without, true)));
    }
}

#[test]
fn a_transcoder_of_sparsify_takes_its_input_as_it_is() {
    let shape = Shape { skip: true, ..Shape::autoencoder(5, 9) };
    let mut params = Parameters::zeros(shape);
    let mut normal = Normal::new(1, Purpose::Decoder);
    params.tensors_mut().into_iter().for_each(|t| normal.fill(t));
    let sae = Sae { subtract_b_dec: false, ..Sae::new(params, Activation::TopK { k: 2 }) };
    let about = About { target: Some("layers.0.mlp".into()), ..About::default() };
    for target in [Target::Sparsify, Target::SaeLens] {
        assert_eq!(again(&sae, target, &about), sae);
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), target, &sae, &about).unwrap();
        let read = read(dir.path(), Expected::default()).unwrap().about.target;
        assert_eq!(read.as_deref(), Some("layers.0.mlp"));
    }
    let refused = write(Path::new("/nowhere"), Target::DictionaryLearning, &sae, &about);
    assert!(refused.unwrap_err().to_string().contains("transcoder"));
    // In an autoencoder SAELens has no place for the path.
    let refused = write(Path::new("/nowhere"), Target::SaeLens, &sae, &About::default());
    assert!(matches!(refused, Err(SaeError::Inexpressible { .. })));
}

#[test]
fn standardised_rows_have_a_place_in_saelens_alone() {
    let sae =
        Sae { row_norm: Some(RowNorm::LAYER_NORM), ..random_sae(5, 9, Activation::TopK { k: 3 }) };
    assert_eq!(again(&sae, Target::SaeLens, &About::default()), sae);
    for target in [Target::Sparsify, Target::DictionaryLearning] {
        let refused = write(Path::new("/nowhere"), target, &sae, &About::default());
        assert!(refused.unwrap_err().to_string().contains("standardised"));
    }
}

/// Peers apply ReLU before the threshold; ours compares alone.
#[test]
fn a_threshold_below_0_is_one_of_0() {
    let mut sae = random_sae(5, 9, Activation::JumpRelu);
    sae.params.threshold.fill(-1.0);
    let read = again(&sae, Target::SaeLens, &About::default());
    assert_eq!(read.params.threshold, [0.0; 9]);
    let latents = read.encode(&[1.0, -2.0, 0.5, 3.0, -0.3]);
    assert!(latents.row(0).1.iter().all(|f| *f > 0.0));
}

#[test]
fn a_threshold_that_ran_away_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ae.pt");
    let bytes = fs_err::read(golden("dictionary_learning_batchtopk/ae.pt")).unwrap();
    rezip(&bytes, &path, |name, data| {
        if *data == 0.4_f32.to_le_bytes() {
            assert!(name.contains("data/"));
            data.copy_from_slice(&f32::INFINITY.to_le_bytes());
        }
    });
    fs_err::copy(
        golden("dictionary_learning_batchtopk/config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let error = read(&path, Expected::default()).unwrap_err().to_string();
    assert!(error.contains("`threshold` is inf"), "{error}");
}

#[test]
fn decoder_norms_fold_before_a_threshold_that_stays() {
    let mut sae = random_sae(5, 9, Activation::JumpRelu);
    sae.params.w_dec.iter_mut().for_each(|w| *w *= 3.0);
    let mut folded = sae.clone();
    adapt::fold_decoder_norm(&mut folded);
    assert_eq!(folded.params.threshold, sae.params.threshold);
    let norms = folded.params.decoder_norms();
    assert!(norms.iter().all(|n| (n - 1.0).abs() < 1e-5));
    assert!((folded.params.w_enc[0] - 3.0 * sae.params.w_enc[0]).abs() < 1e-5);
}

#[test]
fn frequencies_come_back_from_saelens() {
    let dir = tempfile::tempdir().unwrap();
    let frequency: Vec<f64> = (0..9).map(|i| f64::from(i) / 10.0).collect();
    let about = About { frequency: frequency.clone(), ..About::default() };
    write(dir.path(), Target::SaeLens, &random_sae(5, 9, Activation::Relu), &about).unwrap();
    let read = read(dir.path(), Expected::default()).unwrap().about.frequency;
    frequency.iter().zip(&read).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
    let notes = write(dir.path(), Target::Sparsify, &random_sae(5, 9, ACTIVATIONS[0]), &about);
    assert!(notes.unwrap()[0].contains("frequencies"));
}

/// A tensor of a thousand million elements in a storage of four, and others of the kind.
#[test]
fn strides_that_repeat_or_skip_elements_are_refused() {
    let view = |shape: &[usize], strides: &[usize]| View {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
        bytes: Bytes::Mapped(0..0),
    };
    for (shape, strides, elements) in [
        (&[2, 3][..], &[3, 1][..], Some(6)),
        (&[2, 3], &[1, 2], Some(6)),
        (&[1, 3], &[77, 1], Some(3)),
        (&[], &[], Some(1)),
        (&[0, 5], &[5, 1], Some(0)),
        (&[1 << 30, 4], &[0, 1], None),
        (&[2, 3], &[4, 1], None),
        (&[3, 3], &[1, 1], None),
        (&[1 << 40, 1 << 40], &[1 << 40, 1], None),
        (&[7], &[1], None),
    ] {
        assert_eq!(view(shape, strides).elements(24), elements, "{shape:?} {strides:?}");
    }
}

/// Writes an archive again with right checksums after `edit`.
fn rezip(bytes: &[u8], path: &Path, mut edit: impl FnMut(&str, &mut Vec<u8>)) {
    let mut old = ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let mut new = ZipWriter::new(fs_err::File::create(path).unwrap());
    for i in 0..old.len() {
        let mut file = old.by_index(i).unwrap();
        let name = file.name().unwrap().into_owned();
        let mut data = vec![];
        file.read_to_end(&mut data).unwrap();
        edit(&name, &mut data);
        let stored =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        new.start_file(name, stored).unwrap();
        new.write_all(&data).unwrap();
    }
    new.finish().unwrap();
}

/// Changes, removes or doubles a few bytes.
fn mutate(data: &mut Vec<u8>, edits: &[(usize, u8, u8)]) {
    for (at, kind, byte) in edits {
        let at = at % data.len().max(1);
        match kind % 4 {
            0 | 1 if at < data.len() => data[at] = *byte,
            2 if at < data.len() => drop(data.remove(at)),
            _ => data.insert(at.min(data.len()), *byte),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a pickle says, it is read or refused: no panic, and no memory beyond the file's.
    #[test]
    fn mutated_pickles_never_panic(
        file in prop::sample::select(vec![
            "openai_topk/1.pt", "saint/sae.pt", "dictionary_learning_matryoshka/ae.pt",
            "dictionary_learning_gated/ae.pt",
        ]),
        edits in prop::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sae.pt");
        rezip(&fs_err::read(golden(file)).unwrap(), &path, |name, data| {
            if name.ends_with("data.pkl") {
                mutate(data, &edits);
            }
        });
        for format in [Format::OpenAi, Format::Saint, Format::DictionaryLearning] {
            let expected = Expected { sae_from_format: Some(format), top_k: Some(3) };
            if let Ok(loaded) = read(&path, expected) {
                loaded.sae.encode(&vec![1.0; loaded.sae.params.d_in]);
            }
        }
    }

    /// The same of NumPy's headers and of whole archives.
    #[test]
    fn mutated_arrays_never_panic(
        edits in prop::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..4),
        whole in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("params.npz");
        let mut bytes = fs_err::read(golden("gemma_scope/params.npz")).unwrap();
        if whole {
            mutate(&mut bytes, &edits);
            fs_err::write(&path, bytes).unwrap();
        } else {
            rezip(&bytes, &path, |_, data| mutate(data, &edits));
        }
        if let Ok(loaded) = read(&path, Expected::default()) {
            loaded.sae.encode(&vec![1.0; loaded.sae.params.d_in]);
        }
    }
}
