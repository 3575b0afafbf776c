// One ESM file each for extension and mode, into the package that serves them (docs/clients.md).
import { defineConfig } from 'vite';

export default defineConfig(({ mode }) => {
  const name = mode === 'mode' ? 'mode' : 'extension';
  return {
    build: {
      target: 'es2022',
      outDir: '../../sparsight/server/static/ohif',
      emptyOutDir: false, // app-config.js lies there
      lib: { entry: `src/${name}.ts`, formats: ['es'], fileName: () => `${name}.mjs` },
    },
    esbuild: { legalComments: 'inline' }, // lit's licence wants its notice to go along
    test: { environment: 'happy-dom', include: ['test/**/*.test.ts'] },
  };
});
