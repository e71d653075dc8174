/* Inner loops of other engines, written from their documented algorithms to be looked at by llvm-mca; never run.
 *
 * q4_0 × q8_0 (llama.cpp): blocks of 32 weights, byte e = w[e] | w[e+16] << 4, weights are w - 8 with one float16 scale;
 * activations are 32 int8 with one float16 scale. One dot product per call; two blocks per turn, as llama.cpp unrolls.
 * 4 × 4 repack (llama.cpp on CPUs with the dot product, chosen at load): four rows' blocks side by side, 4 bytes of
 * each row in turn, nibbles already signed, so that `sdot` by lane serves four rows; the high nibbles stay 16 times too
 * large and are divided in the conversion to float.
 * W4A8 (TinyChatEngine): groups of 32, byte e = w[e] | w[e+16] << 4, float32 scales; load, `and`, `ushr`, two `sub 8`, dot.
 * It is documented for CPUs with the dot product; without it the same sequence with smull stands in.
 */
#include <arm_neon.h>

typedef struct { __fp16 d; uint8_t q[16]; } block4;
typedef struct { __fp16 d; int8_t q[32]; } block8;
typedef struct { __fp16 d[4]; uint8_t q[64]; } block4x4;
typedef struct { __fp16 d[4]; int8_t q[128]; } block8x4;

static inline int32x4_t dot(int32x4_t sum, int8x16_t a, int8x16_t b) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(sum, a, b);
#else
  int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
  int16x8_t high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
  return vaddq_s32(sum, vaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

static inline int32x4_t dot_block(const uint8_t *w, const int8_t *x) {
  uint8x16_t packed = vld1q_u8(w);
  int8x16_t eight = vdupq_n_s8(8);
  int8x16_t low = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), eight);
  int8x16_t high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)), eight);
  return dot(dot(vdupq_n_s32(0), low, vld1q_s8(x)), high, vld1q_s8(x + 16));
}

float llama_q4_0(const block4 *w, const block8 *x, long blocks) {
  float32x4_t sum0 = vdupq_n_f32(0), sum1 = vdupq_n_f32(0);
#pragma clang loop unroll(disable)
  for (long i = 0; i < blocks; i += 2) {
    sum0 = vmlaq_n_f32(sum0, vcvtq_f32_s32(dot_block(w[i].q, x[i].q)), (float)w[i].d * (float)x[i].d);
    sum1 = vmlaq_n_f32(sum1, vcvtq_f32_s32(dot_block(w[i + 1].q, x[i + 1].q)), (float)w[i + 1].d * (float)x[i + 1].d);
  }
  return vaddvq_f32(sum0) + vaddvq_f32(sum1);
}

float tinychat_w4a8(const uint8_t *w, const float *scales, const int8_t *x, const float *x_scales, long blocks) {
  float32x4_t sum0 = vdupq_n_f32(0), sum1 = vdupq_n_f32(0);
#pragma clang loop unroll(disable)
  for (long i = 0; i < blocks; i += 2) {
    sum0 = vmlaq_n_f32(sum0, vcvtq_f32_s32(dot_block(w + 16 * i, x + 32 * i)), scales[i] * x_scales[i]);
    sum1 = vmlaq_n_f32(sum1, vcvtq_f32_s32(dot_block(w + 16 * i + 16, x + 32 * i + 32)), scales[i + 1] * x_scales[i + 1]);
  }
  return vaddvq_f32(sum0) + vaddvq_f32(sum1);
}

#ifdef __ARM_FEATURE_DOTPROD
/* Columns 4k … 4k+3 of 16 + 16 columns: k = 0 … 3 from x0 (low nibbles) and x1 (high nibbles). */
#define STEP(k) \
  do { \
    int8x16_t packed = vld1q_s8((const int8_t *)w->q + 16 * k); \
    int8x16_t low = vshlq_n_s8(packed, 4), high = vandq_s8(packed, vdupq_n_s8((int8_t)0xF0)); \
    sum = vdotq_laneq_s32(sum, low, x0, k); \
    sum = vdotq_laneq_s32(sum, high, x1, k); \
  } while (0)

void llama_repack_gemv(const block4x4 *w, const block8 *x, float *out, long blocks) {
  float32x4_t total = vdupq_n_f32(0);
#pragma clang loop unroll(disable)
  for (long i = 0; i < blocks; i++, w++, x++) {
    int8x16_t x0 = vld1q_s8(x->q), x1 = vld1q_s8(x->q + 16);
    int32x4_t sum = vdupq_n_s32(0);
    STEP(0); STEP(1); STEP(2); STEP(3);
    float16x4_t d = vld1_f16((const float16_t *)w->d);
    float32x4_t scale = vmulq_n_f32(vcvt_f32_f16(d), (float)x->d);
    total = vfmaq_f32(total, vcvtq_n_f32_s32(sum, 4), scale);
  }
  vst1q_f32(out, total);
}

/* Four activation rows, 4 bytes of each in turn: lane m of a register is row m. */
#define STEP4(k) \
  do { \
    int8x16_t packed = vld1q_s8((const int8_t *)w->q + 16 * k); \
    int8x16_t low = vshlq_n_s8(packed, 4), high = vandq_s8(packed, vdupq_n_s8((int8_t)0xF0)); \
    int8x16_t x0 = vld1q_s8(x->q + 16 * k), x1 = vld1q_s8(x->q + 64 + 16 * k); \
    s0 = vdotq_laneq_s32(s0, low, x0, 0); s1 = vdotq_laneq_s32(s1, low, x0, 1); \
    s2 = vdotq_laneq_s32(s2, low, x0, 2); s3 = vdotq_laneq_s32(s3, low, x0, 3); \
    s0 = vdotq_laneq_s32(s0, high, x1, 0); s1 = vdotq_laneq_s32(s1, high, x1, 1); \
    s2 = vdotq_laneq_s32(s2, high, x1, 2); s3 = vdotq_laneq_s32(s3, high, x1, 3); \
  } while (0)

void llama_repack_gemm(const block4x4 *w, const block8x4 *x, float *out, long blocks) {
  float32x4_t t0 = vdupq_n_f32(0), t1 = t0, t2 = t0, t3 = t0;
#pragma clang loop unroll(disable)
  for (long i = 0; i < blocks; i++, w++, x++) {
    int32x4_t s0 = vdupq_n_s32(0), s1 = s0, s2 = s0, s3 = s0;
    STEP4(0); STEP4(1); STEP4(2); STEP4(3);
    float32x4_t d = vcvt_f32_f16(vld1_f16((const float16_t *)w->d));
    float32x4_t e = vcvt_f32_f16(vld1_f16((const float16_t *)x->d));
    t0 = vfmaq_f32(t0, vcvtq_n_f32_s32(s0, 4), vmulq_laneq_f32(d, e, 0));
    t1 = vfmaq_f32(t1, vcvtq_n_f32_s32(s1, 4), vmulq_laneq_f32(d, e, 1));
    t2 = vfmaq_f32(t2, vcvtq_n_f32_s32(s2, 4), vmulq_laneq_f32(d, e, 2));
    t3 = vfmaq_f32(t3, vcvtq_n_f32_s32(s3, 4), vmulq_laneq_f32(d, e, 3));
  }
  vst1q_f32(out, t0); vst1q_f32(out + 4, t1); vst1q_f32(out + 8, t2); vst1q_f32(out + 12, t3);
}
#endif
