# eomt_pmt_dinov3-l_ade20k_512.py on DINOv2 ViT-L with registers: ours, the authors' image models are on DINOv3 alone.
_base_ = 'eomt_pmt_dinov3-l_ade20k_512.py'
weights = 'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth'
model = dict(vit=dict(arch='large', pretrained=weights))
