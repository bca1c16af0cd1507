# The CPU variants of the core and what they are compiled with, for the Python package and for the core's own tests.
set(SASREC_SANITIZE "" CACHE STRING "sanitizers to compile with: address,undefined or thread")

set(SASREC_VARIANTS "all" CACHE STRING "variants to build: a list, all, or fastest (what this CPU needs)")
set(variants ${SASREC_VARIANTS})
if(variants STREQUAL "all")
  set(variants portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND variants avx2 avx512 avx512_bf16 amx)
  endif()
elseif(variants STREQUAL "fastest")
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "from sasrec.core.isa import fastest_here; print(*fastest_here(), sep=';')"
                  WORKING_DIRECTORY ${CMAKE_CURRENT_LIST_DIR}/../src
                  OUTPUT_VARIABLE variants OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "this CPU's variants are not known; name them in SASREC_VARIANTS, or build all")
  endif()
endif()
message(STATUS "variants of the core: ${variants}")
set(AVX512 -march=x86-64-v4 -mprefer-vector-width=512)
set(SASREC_FLAGS_avx2 -march=x86-64-v3)
set(SASREC_FLAGS_avx512 ${AVX512})
set(SASREC_FLAGS_avx512_bf16 ${AVX512} -mavx512bf16 -DSASREC_BF16)
set(SASREC_FLAGS_amx ${AVX512} -mavx512bf16 -mamx-tile -mamx-bf16 -DSASREC_BF16)

find_package(Threads REQUIRED)

# Compiles `target` as one variant.
function(sasrec_compile target variant)
  target_compile_features(${target} PRIVATE cxx_std_20)
  # GCC 12 warns of its own intrinsics' headers (its bug 105593).
  set(quiet "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized>")
  target_compile_options(${target} PRIVATE -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra
                                           ${quiet} ${SASREC_FLAGS_${variant}})
  if(SASREC_SANITIZE)
    # Optimised a little: the intrinsics need it, and 24 vectors kept on the stack take minutes to compile otherwise.
    target_compile_options(${target} PRIVATE -O1 -g -fno-omit-frame-pointer -fsanitize=${SASREC_SANITIZE}
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${SASREC_SANITIZE})
  endif()
  target_link_libraries(${target} PRIVATE Threads::Threads)
endfunction()
