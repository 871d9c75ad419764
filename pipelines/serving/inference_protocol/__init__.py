"""The Open Inference Protocol, version 2 (KServe, Triton): github.com/kserve/open-inference-protocol.

`tensors` and `questions` are what is asked and answered, in whatever form it travels: `rest` and `grpc_service`.
"""
