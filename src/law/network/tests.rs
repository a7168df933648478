//! Walks through published configurations, held against counts of the same networks.

use super::{Extent, measure};
use serde_json::{Value, json};

/// 1024×1024 px.
const PICTURE: Extent = Extent {
    tokens: 4096.0,
    frames: 1.0,
};

/// Both figures counted operation by operation, by torch in the class of diffusers.
fn agrees(config: &Value, text_tokens: f64, flops: f64, weights: f64) {
    let work = measure(config, text_tokens).unwrap();
    for (ours, counted) in [(work.flops(PICTURE).0, flops), (work.weights, weights)] {
        let off = ours / counted - 1.0;
        assert!(off.abs() < 0.01, "{config}: {ours:e} against {counted:e}");
    }
}

#[test]
fn flux_2_dev_does_what_was_counted() {
    let config = json!({"_class_name": "Flux2Transformer2DModel"});
    // Counted operation by operation.
    agrees(&config, 512.0, 2.825_996e14, 3.222_33e10);
}

#[test]
fn flux_2_klein_does_what_was_counted() {
    let small = json!({
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": false,
    });
    // Counted operation by operation.
    agrees(&small, 512.0, 3.482_021e13, 3.875_54e9);
    let large = json!({
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
        "guidance_embeds": false,
    });
    // Counted operation by operation.
    agrees(&large, 512.0, 7.551_455e13, 9.078_58e9);
}

#[test]
fn z_image_does_what_was_counted() {
    let config = json!({"_class_name": "ZImageTransformer2DModel"});
    // Counted operation by operation.
    agrees(&config, 64.0, 5.560_592e13, 6.154_91e9);
}

#[test]
fn lumina_2_does_what_was_counted() {
    let config = json!({"_class_name": "Lumina2Transformer2DModel", "cap_feat_dim": 2304});
    // Counted operation by operation.
    agrees(&config, 256.0, 2.382_913e13, 2.609_77e9);
}

#[test]
fn auraflow_puts_eight_registers_before_the_text_and_does_what_was_counted() {
    let config = json!({"_class_name": "AuraFlowTransformer2DModel", "pos_embed_max_size": 9216});
    // Counted operation by operation, with 264 tokens: 256 and the registers.
    agrees(&config, 256.0, 4.396_808e13, 6.858_61e9);
}

#[test]
fn cogview4_does_what_was_counted() {
    let config = json!({
        "_class_name": "CogView4Transformer2DModel",
        "num_layers": 28,
        "attention_head_dim": 128,
        "num_attention_heads": 32,
    });
    // Counted operation by operation.
    agrees(&config, 224.0, 5.727_983e13, 6.369_12e9);
}

#[test]
fn stable_cascade_repeats_blocks_with_the_same_weights_and_does_what_was_counted() {
    let plain = ["SDCascadeResBlock", "SDCascadeTimestepBlock"];
    let attending = [
        "SDCascadeResBlock",
        "SDCascadeTimestepBlock",
        "SDCascadeAttnBlock",
    ];
    let decoder = json!({
        "_class_name": "StableCascadeUNet",
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "conditioning_dim": 1280,
        "block_out_channels": [320, 640, 1280, 1280],
        "num_attention_heads": [0, 0, 20, 20],
        "down_num_layers_per_block": [2, 6, 28, 6],
        "up_num_layers_per_block": [6, 28, 6, 2],
        "down_blocks_repeat_mappers": [1, 1, 1, 1],
        "up_blocks_repeat_mappers": [3, 3, 2, 2],
        "block_types_per_layer": [plain, plain, attending, attending],
        "effnet_in_channels": 16,
        "pixel_mapper_in_channels": 3,
        "timestep_conditioning_type": ["sca"],
    });
    // Counted operation by operation.
    agrees(&decoder, 77.0, 6.174_114e12, 1.562_94e9);
    let prior = json!({
        "_class_name": "StableCascadeUNet",
        "clip_text_in_channels": 1280,
        "clip_image_in_channels": 768,
        "switch_level": [false],
    });
    // Counted operation by operation.
    agrees(&prior, 77.0, 4.078_334e12, 3.589_1e9);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let block = ["SDCascadeResBlock"];
    let hostile = [
        ("Flux2Transformer2DModel", "num_layers", json!(u64::MAX)),
        ("Flux2Transformer2DModel", "num_single_layers", json!(-1)),
        ("Flux2Transformer2DModel", "num_attention_heads", json!(0)),
        ("Flux2Transformer2DModel", "attention_head_dim", json!("a")),
        ("Flux2Transformer2DModel", "mlp_ratio", json!(-3)),
        ("Flux2Transformer2DModel", "in_channels", json!(1e308)),
        ("ZImageTransformer2DModel", "n_heads", json!(0)),
        ("ZImageTransformer2DModel", "n_layers", json!(0)),
        ("ZImageTransformer2DModel", "n_refiner_layers", json!(1e6)),
        ("ZImageTransformer2DModel", "n_refiner_layers", json!(101)),
        ("ZImageTransformer2DModel", "all_patch_size", json!([0])),
        ("Lumina2Transformer2DModel", "num_kv_heads", json!(-8)),
        ("Lumina2Transformer2DModel", "multiple_of", json!(0)),
        (
            "AuraFlowTransformer2DModel",
            "num_mmdit_layers",
            json!(u64::MAX),
        ),
        ("AuraFlowTransformer2DModel", "out_channels", json!(0)),
        ("CogView4Transformer2DModel", "time_embed_dim", json!(0)),
        ("CogView4Transformer2DModel", "num_layers", json!(1001)),
        // Neither the prior's latents nor the decoder's.
        ("StableCascadeUNet", "in_channels", json!(8)),
        ("StableCascadeUNet", "num_attention_heads", json!([0, 0])),
        ("StableCascadeUNet", "block_out_channels", json!([])),
        ("StableCascadeUNet", "block_types_per_layer", json!([block])),
        (
            "StableCascadeUNet",
            "block_types_per_layer",
            json!([["ResBlock"], block]),
        ),
        (
            "StableCascadeUNet",
            "up_blocks_repeat_mappers",
            json!([1, u64::MAX]),
        ),
        ("StableCascadeUNet", "down_num_layers_per_block", json!([8])),
        ("StableCascadeUNet", "switch_level", json!([])),
        (
            "StableCascadeUNet",
            "timestep_conditioning_type",
            json!(vec!["sca"; 9]),
        ),
    ];
    for (class, field, value) in hostile {
        let mut config = json!({"_class_name": class});
        config[field] = value;
        assert!(measure(&config, 77.0).is_err(), "{config}");
    }
}

#[test]
fn a_size_of_nought_is_no_size() {
    for (class, field, value) in [
        ("PixArtTransformer2DModel", "patch_size", json!(0)),
        ("SD3Transformer2DModel", "patch_size", json!(-2)),
    ] {
        let mut config = json!({ "_class_name": class });
        assert!(measure(&config, 77.0).is_ok(), "{class}");
        config[field] = value;
        let said = measure(&config, 77.0).unwrap_err().to_string();
        assert!(said.contains(class) && said.contains(field), "{said}");
    }
}

#[test]
fn a_field_that_is_nearly_another_is_a_typing_error_and_no_default() {
    let unet = |depths: &str, value: Value| {
        let mut config = json!({
            "_class_name": "UNet2DConditionModel", "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        });
        config[depths] = value;
        measure(&config, 77.0)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert!(unet("transformer_layers_per_block", json!([1, 2, 10])).is_ok());
    for name in [
        "transformers_layers_per_block",
        "transformer_layer_per_block",
        "transfromer_layers_per_block",
    ] {
        let said = unet(name, json!([1, 2, 10])).unwrap_err();
        assert!(
            said.contains(name) && said.contains("did you mean"),
            "{said}"
        );
    }
    let said = unet("transformer_layers_per_block", json!([1, 2])).unwrap_err();
    assert!(said.contains("2 long"), "{said}");
    // What diffusers has besides is none of our business.
    assert!(unet("center_input_sample", json!(false)).is_ok());
}
