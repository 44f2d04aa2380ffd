// Every symbol that TensorRT's Python bindings look for, giving nothing: enough to import them.
extern "C" {
void* createInferBuilder_INTERNAL(void*, int) { return nullptr; }
void* createInferRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* createInferRuntime_INTERNAL(void*, int) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* getBuilderPluginRegistry(int) { return nullptr; }
void* getPluginRegistry() { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
bool initLibNvInferPlugins(void*, const char*) { return true; }
}
