"""The parity gate: the deployed system against the fp32 reference, image by image. numpy alone."""
