"""The importable surface of TorchServe 0.12's `ts` (contract section 10.5), with the parameters that the installed package has.

One line is one name of the module above it: a class or a value, `function(parameters)`, or `Class.method(parameters)`. A
parameter that has a default ends in `=`; `property` stands for what is no method.
"""

NAMES = """
ts.context
  Context
  Context.__init__(model_name model_dir manifest batch_size gpu mms_version limit_max_image_pixels= metrics= model_yaml_config=)
  Context.system_properties(property)
  Context.request_processor(property)
  Context.metrics(property)
  Context.get_request_id(idx=)
  Context.get_request_header(idx key)
  Context.get_all_request_header(idx)
  Context.set_response_content_type(idx value)
  Context.get_response_content_type(idx)
  Context.get_response_status(idx)
  Context.set_response_status(code= phrase= idx=)
  Context.set_all_response_status(code= phrase=)
  Context.get_response_headers(idx)
  Context.set_response_header(idx key value)
  Context.get_sequence_id(idx)
  RequestProcessor
  RequestProcessor.__init__(request_header)
  RequestProcessor.get_request_property(key)
  RequestProcessor.report_status(code reason_phrase=)
  RequestProcessor.get_response_status_code()
  RequestProcessor.get_response_status_phrase()
  RequestProcessor.add_response_property(key value)
  RequestProcessor.get_response_headers()
  RequestProcessor.get_response_header(key)
  RequestProcessor.get_request_properties()
ts.service
  PredictionException
  emit_metrics(metrics)
ts.utils.util
  PredictionException
  PredictionException.__init__(message error_code=)
  map_class_to_label(probs mapping= lbl_classes=)
  load_label_mapping(mapping_file_path)
  list_classes_from_module(module parent_class=)
  check_valid_pt2_backend(backend)
  get_yaml_config(yaml_file_path)
  deprecated(version replacement= klass=)
  PT2Backend
  CLEANUP_REGEX
ts.utils.hf_utils
  download_model(model_id= revision= model_path= use_auth_token=)
ts.handler_utils.timer
  timed(func)
ts.handler_utils.utils
  send_intermediate_predict_response(ret req_id_map message code context)
  import_class(class_name module_prefix=)
ts.protocol.otf_message_handler
  send_intermediate_predict_response(ret req_id_map message code context=)
ts.handler_utils.micro_batching
  MicroBatching
  MicroBatching.__init__(parent_handler micro_batch_size= parallelism=)
  MicroBatching.parallelism(property)
  MicroBatching.shutdown()
  MicroBatching.handle(data)
  MicroBatching.get_micro_batch_idx()
ts.handler_utils.hf_batch_streamer
  TextIteratorStreamerBatch
  TextIteratorStreamerBatch.__init__(tokenizer batch_size skip_prompt= timeout= **decode_kwargs)
  TextIteratorStreamerBatch.put(value)
  TextIteratorStreamerBatch.end()
ts.handler_utils.distributed.pt_pippy
  get_pipeline_driver(model world_size ctx)
  initialize_rpc_workers(local_rank world_size ctx)
ts.handler_utils.distributed.deepspeed
  get_ds_engine(model ctx)
  create_checkpoints_json(model_path checkpoints_json)
ts.handler_utils.preprocess.dali
  get_dali_pipeline(ctx)
ts.metrics.dimension
  Dimension
  Dimension.__init__(name value)
ts.metrics.metric_type_enum
  MetricTypes
ts.metrics.metric
  Metric
  Metric.__init__(name value unit dimensions request_id= metric_method=)
  Metric.update(value)
  Metric.reset()
  Metric.to_dict()
ts.metrics.process_memory_metric
  check_process_mem_usage(stdin)
ts.metrics.metrics_store
  MetricsStore
  MetricsStore.__init__(request_ids model_name)
  MetricsStore.add_counter(name value idx= dimensions=)
  MetricsStore.add_time(name value idx= unit= dimensions=)
  MetricsStore.add_size(name value idx= unit= dimensions=)
  MetricsStore.add_percent(name value idx= dimensions=)
  MetricsStore.add_error(name value dimensions=)
  MetricsStore.add_metric(name value unit idx= dimensions=)
ts.metrics.metric_cache_yaml_impl
  MetricsCacheYamlImpl
  MetricsCacheYamlImpl.__init__(config_file_path)
  MetricsCacheYamlImpl.initialize_cache()
  MetricsCacheYamlImpl.add_metric_to_cache(metric_name unit dimension_names= metric_type=)
  MetricsCacheYamlImpl.get_metric(metric_name metric_type=)
  MetricsCacheYamlImpl.cache_keys()
ts.metrics.caching_metric
  CachingMetric
  CachingMetric.add_or_update(value dimension_values= request_id=)
  CachingMetric.update(value request_id= dimensions=)
ts.metrics.unit
  Units
ts.handler_utils.text_utils
  get_tokenizer(tokenizer language=)
  ngrams_iterator(token_list ngrams)
ts.torch_handler.base_handler
  BaseHandler
  BaseHandler.__init__()
  BaseHandler.initialize(context)
  BaseHandler.preprocess(data)
  BaseHandler.inference(data *args **kwargs)
  BaseHandler.postprocess(data)
  BaseHandler.handle(data context)
  BaseHandler.explain_handle(data_preprocess raw_data)
  BaseHandler.describe_handle()
  BaseHandler.get_device()
ts.torch_handler.vision_handler
  VisionHandler
  VisionHandler.initialize(context)
  VisionHandler.preprocess(data)
  VisionHandler.get_insights(tensor_data _ target=)
ts.torch_handler.image_classifier
  ImageClassifier
  ImageClassifier.set_max_result_classes(topk)
  ImageClassifier.get_max_result_classes()
  ImageClassifier.postprocess(data)
ts.torch_handler.image_segmenter
  ImageSegmenter
  ImageSegmenter.postprocess(data)
ts.torch_handler.object_detector
  ObjectDetector
  ObjectDetector.initialize(context)
  ObjectDetector.postprocess(data)
ts.torch_handler.densenet_handler
  DenseNetHandler
  DenseNetHandler.__init__()
  DenseNetHandler.initialize(context)
  DenseNetHandler.inference(data *args **kwargs)
  DenseNetHandler.handle(data context)
ts.torch_handler.text_handler
  TextHandler
  TextHandler.__init__()
  TextHandler.initialize(context)
  TextHandler.get_source_vocab_path(ctx)
  TextHandler.get_word_token(input_tokens)
  TextHandler.summarize_attributions(attributions)
ts.torch_handler.text_classifier
  TextClassifier
  TextClassifier.preprocess(data)
  TextClassifier.inference(data *args **kwargs)
  TextClassifier.postprocess(data)
  TextClassifier.get_insights(text_preprocess _ target=)
ts.torch_handler.contractions
  CONTRACTION_MAP
ts.torch_handler.dali_handler
  DALIHandler
  DALIHandler.initialize(context)
  DALIHandler.preprocess(data)
  DALIHandler.get_insights(tensor_data _ target=)
ts.torch_handler.dali_image_classifier
  DALIImageClassifier
  DALIImageClassifier.set_max_result_classes(topk)
  DALIImageClassifier.get_max_result_classes()
  DALIImageClassifier.postprocess(data)
ts.torch_handler.vllm_handler
  VLLMHandler
  VLLMHandler.initialize(ctx)
ts.torch_handler.trt_llm_handler
  TRTLLMHandler
  TRTLLMHandler.initialize(ctx)
ts.torch_handler.distributed.base_pippy_handler
  BasePippyHandler
  BasePippyHandler.initialize(ctx)
ts.torch_handler.distributed.base_deepspeed_handler
  BaseDeepSpeedHandler
  BaseDeepSpeedHandler.initialize(ctx)
ts.torch_handler.request_envelope.base
  BaseEnvelope
  BaseEnvelope.__init__(handle_fn)
  BaseEnvelope.handle(data context)
  BaseEnvelope.parse_input(data)
  BaseEnvelope.format_output(data)
ts.torch_handler.request_envelope.body
  BodyEnvelope
  BodyEnvelope.parse_input(data)
  BodyEnvelope.format_output(data)
ts.torch_handler.request_envelope.json
  JSONEnvelope
  JSONEnvelope.parse_input(data)
  JSONEnvelope.format_output(data)
ts.torch_handler.request_envelope.kserve
  KServeEnvelope
  KServeEnvelope.parse_input(data)
  KServeEnvelope.format_output(data)
ts.torch_handler.request_envelope.kservev2
  KServev2Envelope
  KServev2Envelope.parse_input(data)
  KServev2Envelope.format_output(data)
ts.torch_handler.unit_tests.test_utils.mock_context
  MockContext
  MockContext.__init__(model_pt_file= model_dir= model_file= gpu_id= model_name= model_yaml_config_file=)
  MockContext.get_request_header(idx exp)
ts.version
  __version__
"""


def table() -> dict[str, str | None]:
    """`module:name` to the parameters, None for what has none."""
    found: dict[str, str | None] = {}
    module = ""
    for line in NAMES.splitlines():
        if line.startswith("  "):
            name, bracket, parameters = line.strip().partition("(")
            found[f"{module}:{name}"] = parameters.removesuffix(")") if bracket else None
        elif line:
            module = line
    return found


def takes_as_much(ours: str, theirs: str) -> bool:
    """Whether whoever calls theirs may call ours: the same names in the same order, further ones only with defaults."""
    mine, wanted = ours.split(), theirs.split()
    if len(mine) < len(wanted):
        return False
    same = all(
        own.rstrip("=") == other.rstrip("=") and (own.endswith("=") or not other.endswith("="))
        for own, other in zip(mine, wanted, strict=False)
    )
    return same and all(own.endswith("=") or own.startswith("*") for own in mine[len(wanted) :])
