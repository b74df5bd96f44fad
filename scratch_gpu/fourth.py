import sys,time,os,traceback
import numpy as np
from turbocode.kernels._graph import Gpu
from turbocode.kernels._launch import DeviceArray
from turbocode.kernels.fwht import cuda as fw, rotation_for, cpu as fwcpu, Rotation
from turbocode.kernels.scalar import cuda as gpu, cpu, NormMode
from turbocode.kernels.trellis import cpu as tcpu
from turbocode.kernels.trellis.encode_kernel import encode_kernel, Arithmetic, THREADS
from turbocode.codecs import make_codec
G=Gpu(0); print(G.name,G.compute_capability,flush=True)
rng=np.random.default_rng(0)
def up(h,dtype=None):
    a=G.empty(h.shape,dtype or str(h.dtype)); G.upload(np.ascontiguousarray(h),a); G.wait(); return a
def down(a):
    h=np.empty(a.shape,{'bfloat16':'uint16'}.get(a.dtype,a.dtype)); G.download(a,h); G.wait(); return h
def attempt(f,*a):
    try: f(*a)
    except Exception: traceback.print_exc(limit=3); print('FAIL',f.__name__,a,flush=True)
def check_rot(g,dt):
    r=rotation_for(g); x=rng.standard_normal((10000,g)).astype(dt)
    d=up(x); o=G.empty(x.shape,'float32'); fw.rotate(d,r,out=o); G.wait()
    e=fwcpu.rotate(x.astype(np.float32),r)
    print('rotate',g,dt.__name__,np.array_equal(down(o),e),flush=True)
def check(name,hd,dt,n):
    c=make_codec(name,hd); form=c.block_format; g=form.group_size
    x=rng.standard_normal((n,g)).astype(dt); x[:50]*=np.float32(1e-5); x[7]=0
    cen,bou=c.tables(); mode=NormMode.MSE if form.is_trellis else NormMode.L2
    t0=time.time()
    ref=tcpu.encode(x,form,c.rotation,cen,mode) if form.is_trellis else cpu.encode(x,form,c.rotation,cen,bou,mode)
    t1=time.time()
    table=cen if form.is_trellis else gpu.scalar_table(cen,bou)
    enc=gpu.Encoder(form,c.rotation,table,mode,(lambda v:(*encode_kernel(v),THREADS)) if form.is_trellis else gpu.encode_choice)
    d=up(x); b=G.empty((n,form.bytes_per_group),'uint8'); enc(d,out=b); G.wait(); b0=down(b)
    _,f,fl=enc.measured(d,out=b); G.wait(); G.wait()
    from turbocode.kernels._launch import device_array
    m=gpu.moments(down(device_array(f)),form.has_codebook)
    dec=gpu.Decoder(form,c.rotation,table); o=G.empty((n,g),'float32'); dec(b,out=o); G.wait()
    e=cpu.decode(ref.blocks,form,c.rotation,cen)
    print(name,g,dt.__name__,n*g,'blocks differ',int((b0!=ref.blocks).any(1).sum()),int((down(b)!=ref.blocks).any(1).sum()),'moments',np.array_equal(m,ref.moments),'decode',np.array_equal(down(o),e),round(t1-t0,1),round(time.time()-t1,1),flush=True)

def checkfast(name,hd,n):
    c=make_codec(name,hd); form=c.block_format; g=form.group_size
    x=(rng.standard_normal((n,g))*np.exp(rng.standard_normal((n,1)))).astype(np.float16)
    cen,bou=c.tables(); table=gpu.scalar_table(cen,bou); mode=NormMode.L2
    ref=cpu.encode(x,form,c.rotation,cen,bou,mode).blocks
    enc=gpu.Encoder(form,c.rotation,table,mode,gpu.fast_encode_choice); dec=gpu.Decoder(form,c.rotation,table,gpu.fast_decode_choice)
    d=up(x); b=G.empty((n,form.bytes_per_group),'uint8'); enc(d,out=b); G.wait(); b0=down(b)
    from turbocode.formats.packing import unpack_bits
    A=b0.view(form.dtype).reshape(n,-1); B=ref.view(form.dtype).reshape(n,-1)
    norms=int((A['norm']!=B['norm']).any(1).sum())
    if 'indices' in A.dtype.names:
        ia=unpack_bits(A['indices'],form.bits).astype(int); ib=unpack_bits(B['indices'],form.bits).astype(int); di=np.abs(ia-ib)
        print('fast',name,g,n*g,'indices differ',int((di>0).sum()),'by at most',int(di.max()),'rate',(di>0).mean(),'norms differ',norms,norms/n,flush=True)
    else: print('fast',name,g,n*g,'blocks differ',int((b0!=ref).any(1).sum()),'norms',norms,flush=True)
    o=G.empty((n,g),'float32'); d2=up(ref); dec(d2,out=o); G.wait(); e=cpu.decode(ref,form,c.rotation,cen); print('   decode max rel',np.abs(down(o)-e).max()/np.abs(e).max(),flush=True)
attempt(checkfast,'turbo4',128,80000)
# timing
N=1<<28
src=G.empty((N//128,128),'float32'); dst=G.empty((N//128,128),'float32')
h=rng.standard_normal(1<<22,dtype=np.float32); 
def t_copy(nb):
    s=G.seconds_plain(lambda:G.copy(src,dst,nb),20); print(f'copy {nb/1e9:.2f} GB {2*nb/s/1e9:.0f} GB/s',flush=True); return 2*nb/s
G.fill(src,h,N*4); C=t_copy(N*4); t_copy(N*2)
def as_(a,shape,dt):
    size={'float32':4,'uint8':1}.get(dt,2); st=[]; k=size
    for n in reversed(shape): st.append(k); k*=n
    return DeviceArray(a.pointer,tuple(shape),tuple(reversed(st)),dt,0,G.stream,a)
def row(name,f,nbytes,nvalues):
    try:
        s=G.seconds(f,10); print(f'{name:40s} {s*1e6:9.1f} us {nbytes/s/1e9:7.0f} GB/s {nbytes/s/C*100:5.1f} % of copy {nvalues/s/1e9:8.1f} G values/s',flush=True)
    except Exception: traceback.print_exc(limit=2)
def rot(g):
    ones=np.ones(g,np.float32)
    return Rotation('hadamard',g,g,np.ones((1,1),np.float32),ones,ones)
for dt,size in (('float16',2),):
    if dt!='float32': G.fill(src,h.astype(np.float16),N*2)
    for g in ():
        r=rot(g); row(f'fwht {g} {dt}',lambda:fw.rotate(as_(src,(N//g,g),dt),r,out=as_(dst,(N//g,g),dt),stream=G.stream),2*N*size,N)
    r=rotation_for(128); row(f'rotate 128 {dt}',lambda:fw.rotate(as_(src,(N//128,128),dt),r,out=as_(dst,(N//128,128),dt),stream=G.stream),2*N*size,N)
    r=rotation_for(96); n=N//128; row(f'rotate 96 {dt}',lambda:fw.rotate(as_(src,(n,96),dt),r,out=as_(dst,(n,96),dt),stream=G.stream),2*n*96*size,n*96)
def coder(name,hd,N,ar=None,per=0):
    c=make_codec(name,hd); form=c.block_format; g=form.group_size; cen,bou=c.tables()
    table=cen if form.is_trellis else gpu.scalar_table(cen,bou); mode=NormMode.MSE if form.is_trellis else NormMode.L2
    ch=(lambda v:(*encode_kernel(v,Arithmetic(ar or 0)),THREADS)) if form.is_trellis else (gpu.fast_encode_choice if ar==9 else gpu.encode_choice)
    enc=gpu.Encoder(form,c.rotation,table,mode,ch); dec=gpu.Decoder(form,c.rotation,table,gpu.fast_decode_choice if ar==9 else gpu.decode_choice)
    n=N//128; x=as_(src,(n,g),'float16'); b=as_(dst,(n,form.bytes_per_group),'uint8'); o=x
    nb=n*(2*g+form.bytes_per_group)
    row(f'encode {name} {g} {ar or ""}',lambda:enc(x,out=b,stream=G.stream),nb,n*g)
    row(f'decode {name} {g} {ar or ""}',lambda:dec(b,out=as_(dst2,(n,g),'float16'),stream=G.stream),nb,n*g)
dst2=G.empty((N,),'float16')
for name,hd in (('turbo2',128),('turbo3',128),('turbo4',128),('turbo3_0',128),('turbo3',64)): attempt(coder,name,hd,N,9)

from turbocode.kernels.scalar import encode_tensor as ET, decode_tensor as DT
for blocks in (3,5,6):
    ET.BLOCKS_PER_MULTIPROCESSOR=DT.BLOCKS_PER_MULTIPROCESSOR=blocks; ET.encode_kernel.cache_clear(); DT.decode_kernel.cache_clear(); print('blocks',blocks)
    for name,hd in (('turbo2',128),('turbo3',128),('turbo4',128)): attempt(coder,name,hd,N,9)
# host time
c=make_codec('turbo3',128); cen,bou=c.tables(); enc=gpu.Encoder(c.block_format,c.rotation,gpu.scalar_table(cen,bou),NormMode.L2)
import torch
x=torch.randn(1,8,1,128,device='cuda',dtype=torch.float16); cache=torch.zeros(1,8,4096,50,device='cuda',dtype=torch.uint8); st=torch.zeros(1,device='cuda',dtype=torch.int32)
def host(name,f,n=200):
    for _ in range(20): f()
    torch.cuda.synchronize(); best=9
    for _ in range(10):
        t=time.perf_counter()
        for _ in range(n): f()
        best=min(best,(time.perf_counter()-t)/n); torch.cuda.synchronize()
    print(f'host {name} {best*1e6:.2f} us',flush=True)
def hosts():
    host('encode append torch',lambda:enc(x,out=cache,starts=st))
    o=torch.zeros(1,8,1,50,device='cuda',dtype=torch.uint8)
    host('encode out torch',lambda:enc(x,out=o)); host('encode new torch',lambda:enc(x))
    xb=x.bfloat16(); host('encode bf16',lambda:enc(xb,out=o))
    s=torch.cuda.Stream()
    g=torch.cuda.CUDAGraph()
    with torch.cuda.graph(g): enc(x,out=o)
    o.zero_(); g.replay(); torch.cuda.synchronize(); print('graph ok',bool((o!=0).any()), bool((o==enc(x)).all()))
    host('graph replay',g.replay)
    a=DeviceArray(x.data_ptr(),tuple(x.shape),tuple(2*i for i in x.stride()),'float16',0,0,x); b=DeviceArray(o.data_ptr(),tuple(o.shape),tuple(o.stride()),'uint8',0,0,o)
    host('encode DeviceArray',lambda:enc(a,out=b))
    import cupy
    xc=cupy.asarray(x); oc=cupy.asarray(o); host('encode cupy',lambda:enc(xc,out=oc)); 
    st.fill_(5); enc(x,out=cache,starts=st); torch.cuda.synchronize(); print('append ok',bool((cache[:,:,5:6]==enc(x)).all()), int((cache!=0).any(-1).sum()))
attempt(hosts)
