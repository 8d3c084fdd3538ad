//! The hook points of a network, under the names that its family gives to modules.

use super::{
    super::site::{Point, Site, Width},
    config::{AttnNames, Config, Inner, MlpNames, Qkv},
};

/// The table.
pub fn sites(c: &Config) -> Vec<Site> {
    let layer = |rest: &str| format!("@{}.{{}}{rest}", c.names.layers);
    let mut sites = embedding(c);
    sites.push(
        Site::new(
            Point::ResidPre,
            layer("#in"),
            "blocks.{}.hook_resid_pre",
            "residual stream before the block",
        )
        .also(stream_readers(c.names.attn.before, &c.names.attn, &layer)),
    );
    sites.extend(attention(c, &layer));
    sites.extend(between(c, &layer));
    sites.extend(feed_forward(c, &layer));
    sites.push(
        Site::new(
            Point::ResidPost,
            layer(""),
            "blocks.{}.hook_resid_post",
            "residual stream after the block",
        )
        .also([format!("@{}#in", c.names.norm)]),
    );
    sites.extend(ending(c));
    sites
}

fn embedding(c: &Config) -> Vec<Site> {
    let names = &c.names;
    let table = format!("@{}", names.embed);
    let start = "token embedding: start of the residual stream";
    let Some(embedded) = names.embedded else {
        let what = match (c.embed.scale, c.embed.after) {
            (_, Some(_)) => "token embedding, before it is scaled to start the residual stream",
            (Some(_), _) => "token embedding, scaled: start of the residual stream",
            _ => start,
        };
        return vec![Site::new(Point::Embed, table, "hook_embed", what).also(["embed"])];
    };
    let mut sites = vec![Site::new(Point::WordEmbed, table, "hook_embed", "token embedding")];
    if let Some(positions) = names.positions {
        let path = format!("@{positions}");
        sites.push(Site::new(Point::PositionEmbed, path, "hook_pos_embed", "position embedding"));
    }
    let norm = names.embed_norm.map(|norm| format!("@{norm}"));
    let what = match norm {
        Some(_) => "token embedding after its norm: start of the residual stream",
        None => "sum of the embeddings: start of the residual stream",
    };
    let whole = Site::new(Point::Embed, format!("@{embedded}"), "hook_full_embed", what);
    sites.push(whole.also(norm).also(["embed"]));
    sites
}

/// Modules that read the residual stream before a block's first half.
fn stream_readers(
    norm: Option<&str>,
    names: &AttnNames,
    layer: &dyn Fn(&str) -> String,
) -> Vec<String> {
    match norm {
        Some(norm) => vec![layer(&format!(".{norm}#in"))],
        None => attention_inputs(names, layer),
    }
}

fn attention_inputs(names: &AttnNames, layer: &dyn Fn(&str) -> String) -> Vec<String> {
    let module = names.module;
    let inner: &[&str] = match &names.qkv {
        Qkv::Apart(names) => names,
        Qkv::Joined(name) | Qkv::ByHead(name) => &[name],
    };
    let inner = inner.iter().map(|name| layer(&format!(".{module}.{name}#in")));
    std::iter::once(layer(&format!(".{module}#in"))).chain(inner).collect()
}

fn attention(c: &Config, layer: &dyn Fn(&str) -> String) -> Vec<Site> {
    let names = &c.names.attn;
    let (module, o) = (names.module, names.o);
    let mut sites = vec![];
    if let Some(norm) = names.before {
        let what = "normalised copy of resid_pre that feeds the attention, norm weight applied";
        let lens = "blocks.{}.ln1.hook_normalized";
        let site = Site::new(Point::AttnIn, layer(&format!(".{norm}")), lens, what);
        sites.push(site.also(attention_inputs(names, layer)));
    }
    let z = Site::new(
        Point::Z,
        layer(&format!(".{module}.{o}#in")),
        "blocks.{}.attn.hook_z",
        "mix of values per head, heads side by side, before the output projection",
    );
    sites.push(z.wide(Width::Heads));
    let projection = [layer(&format!(".{module}")), layer(&format!(".{module}.{o}"))];
    let scaled = c.residual.scale.is_some();
    sites.extend(added(
        (Point::AttnProj, Point::AttnOut),
        projection,
        names.after.map(|norm| layer(&format!(".{norm}"))),
        ["blocks.{}.attn.hook_out", "blocks.{}.hook_attn_out"],
        [
            "output of the attention, before the norm that follows it",
            if scaled {
                "what the attention adds to the residual stream, before its factor"
            } else {
                "what the attention adds to the residual stream"
            },
        ],
    ));
    sites
}

/// A half's last output and what is added of it, which are two where a norm is between.
fn added(
    (inner, outer): (Point, Point),
    [module, projection]: [String; 2],
    norm: Option<String>,
    [inner_lens, outer_lens]: [&str; 2],
    [inner_what, outer_what]: [&'static str; 2],
) -> Vec<Site> {
    match norm {
        None => vec![Site::new(outer, module, outer_lens, outer_what).also([projection])],
        Some(norm) => {
            let inputs = [projection, format!("{norm}#in")];
            vec![
                Site::new(inner, module, inner_lens, inner_what).also(inputs),
                Site::new(outer, norm, outer_lens, outer_what),
            ]
        }
    }
}

fn feed_forward_inputs(c: &Config, layer: &dyn Fn(&str) -> String) -> Vec<String> {
    let MlpNames { module, inner, .. } = c.names.mlp;
    let inner: &[&str] = match &inner {
        _ if c.mlp.experts.is_some() => &[],
        Inner::Gated { gate, up } => &[gate, up],
        Inner::Joined(name) | Inner::Plain(name) => &[name],
    };
    let inner = inner.iter().map(|name| layer(&format!(".{module}.{name}#in")));
    std::iter::once(layer(&format!(".{module}#in"))).chain(inner).collect()
}

/// The residual stream between both halves, if it exists, and what the second half reads.
fn between(c: &Config, layer: &dyn Fn(&str) -> String) -> Vec<Site> {
    let inputs = feed_forward_inputs(c, layer);
    let what = "residual stream between attention and feed-forward block";
    let lens = "blocks.{}.hook_resid_mid";
    let Some(norm) = c.names.mlp.before else {
        let [module, inner @ ..] = &inputs[..] else { return vec![] };
        return vec![Site::new(Point::ResidMid, module, lens, what).also(inner)];
    };
    let norm = layer(&format!(".{norm}"));
    let mid = (!c.residual.parallel)
        .then(|| Site::new(Point::ResidMid, format!("{norm}#in"), lens, what));
    let what = if c.residual.parallel {
        "normalised copy of resid_pre that feeds the feed-forward block, norm weight applied"
    } else {
        "normalised copy of resid_mid that feeds the feed-forward block, norm weight applied; \
         not the residual stream"
    };
    let normed = Site::new(Point::MlpIn, norm, "blocks.{}.ln2.hook_normalized", what);
    mid.into_iter().chain([normed.also(inputs)]).collect()
}

fn feed_forward(c: &Config, layer: &dyn Fn(&str) -> String) -> Vec<Site> {
    let MlpNames { module, act, down, after, .. } = c.names.mlp;
    let inside = |name: &str| layer(&format!(".{module}.{name}"));
    let (act, down) = (inside(act), inside(down));
    let post = format!("{down}#in");
    let mut sites = vec![];
    if c.mlp.experts.is_none() {
        let gate_lens = "blocks.{}.mlp.act_fn.hook_out";
        let what = "gate after the activation function, before it multiplies the other projection";
        let mut inner = if c.gated() {
            sites.push(Site::new(Point::MlpGate, act, gate_lens, what).wide(Width::Mlp));
            let what =
                "inner activation of the feed-forward block: gate times the other projection";
            Site::new(Point::MlpAct, post, "blocks.{}.mlp.hook_post", what)
        } else {
            let what = "inner activation of the feed-forward block";
            Site::new(Point::MlpAct, post, "blocks.{}.mlp.hook_post", what).also([act])
        };
        inner.width = Width::Mlp;
        sites.push(inner);
    }
    let scaled = c.residual.scale.is_some();
    sites.extend(added(
        (Point::MlpProj, Point::MlpOut),
        [layer(&format!(".{module}")), down],
        after.map(|norm| layer(&format!(".{norm}"))),
        ["blocks.{}.mlp.hook_out", "blocks.{}.hook_mlp_out"],
        [
            "output of the feed-forward block, before the norm that follows it",
            if scaled {
                "what the feed-forward block adds to the residual stream, before its factor"
            } else {
                "what the feed-forward block adds to the residual stream"
            },
        ],
    ));
    sites
}

fn ending(c: &Config) -> Vec<Site> {
    let what = "normalised residual stream after the last block";
    let path = format!("@{}", c.names.norm);
    let norm = Site::new(Point::FinalNorm, path, "ln_final.hook_normalized", what);
    let norm = norm.also(["final_norm"]);
    let Some(head) = c.head else { return vec![norm] };
    // Whatever the checkpoint calls it, today's class calls it so.
    let mut modules = vec![c.names.head, "lm_head"];
    modules.dedup();
    let what = "scores of the next token";
    let logits = Site::new(Point::Logits, "logits", "unembed.hook_out", what).wide(Width::Vocab);
    // Where scores are scaled or capped, the module's output is not yet the scores.
    let logits = match (head.divisor, head.cap) {
        (None, None) => {
            let also = modules[1..].iter().copied().chain(["logits"]);
            Site { path: modules[0].to_owned(), ..logits }.also(also)
        }
        _ => logits,
    };
    vec![norm.also(modules.iter().map(|module| format!("{module}#in"))), logits]
}
